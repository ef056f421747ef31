"""What tests of figures share: warnings are errors, and a figure is looked at as it was written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes


@pytest.fixture(autouse=True)
def strictly() -> Iterator[None]:
    mpl.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What earlier tests left to the garbage collector, such as a kernel's sockets, is no figure's.
        warnings.simplefilter("ignore", pytest.PytestUnraisableExceptionWarning)
        yield
    plt.close("all")


def drawn(ax: Axes) -> Axes:
    """The axes, once they were laid out and written as a notebook does it."""
    for form in ("png", "pdf"):
        assert ax.figure is not None
        ax.figure.savefig(BytesIO(), format=form, bbox_inches="tight")  # type: ignore[union-attr]
    assert ax.get_xlabel() or [each.get_text() for each in ax.get_xticklabels()]
    return ax


def labels(ax: Axes) -> list[str]:
    return [each.get_text() for each in ax.get_yticklabels()]
