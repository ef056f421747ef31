"""Packages that come with an extra of this project, as the metadata of the installation lists them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from collections import defaultdict
from collections.abc import Iterator

from meshdns.core import errors

_OF_AN_EXTRA = re.compile(r"""([\w.-]+)[^;\[]*;.*\bextra == ['"]([\w-]+)['"]""")


@contextlib.contextmanager
def needed_by(verb: str) -> Iterator[None]:
    """Where a package of an extra is missed inside, EnvironmentProblem names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = str(error.name).partition(".")[0].lower()
        bringing = {extra: packages for extra, packages in _extras().items() if module in packages}
        if not bringing:
            raise
        extra = min(bringing, key=lambda each: (len(bringing[each]), each == "all"))  # another may name the same
        missing = ", ".join(each for each in bringing[extra] if _requirements(each) is None)
        fact, step = f"{verb} needs packages that are not installed ({missing})", f"pip install 'meshdns[{extra}]'"
        raise errors.EnvironmentProblem(fact, step=f"run: {step}") from None


def _extras() -> dict[str, list[str]]:
    """Extra -> names of its packages, in small letters; of one that holds another, those of both."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in _requirements("meshdns") or []:
        if match := _OF_AN_EXTRA.match(line):
            found[match[2]].append(match[1].lower())
    return found


def _requirements(package: str) -> list[str] | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
