"""The verdicts of all claims at a glance."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from meshdns.analysis import drawing
from meshdns.studies.verdict import DEPENDS, REFUTED, SUPPORTED, UNDECIDED, UNMEASURED

_VERDICTS = {
    SUPPORTED: ("#222222", "o"),
    DEPENDS: ("#222222", "D"),
    REFUTED: ("#222222", "X"),
    UNDECIDED: ("#777777", "s"),
    UNMEASURED: ("#aaaaaa", "|"),
}


def verdicts(table: pd.DataFrame) -> Axes:
    """One row per claim, one column per verdict."""
    columns = list(_VERDICTS)
    with drawing.axes(1.2 + 0.26 * len(table)) as ax:
        for y, verdict in enumerate(table["verdict"]):
            colour, marker = _VERDICTS[str(verdict)]
            ax.plot([columns.index(str(verdict))], [y], marker, color=colour, markersize=9, markeredgewidth=1.8)
        drawing.rows(ax, list(table["claim"]))
        ax.set_xlim(-0.5, len(columns) - 0.5)
        ax.set_xticks(range(len(columns)), [name.replace("not yet ", "not yet\n") for name in columns])
        ax.xaxis.tick_top()
        ax.grid(visible=True, axis="both")
        ax.spines[["bottom", "left"]].set_visible(False)
        ax.tick_params(length=0)
        return ax
