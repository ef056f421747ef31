"""Where things lie: what comes with the program, and what it writes.

In a checkout both are the project's root. In an installation what comes with it lies inside the package, and runs,
reports and the testbed's state are put where the person stands.
"""

from __future__ import annotations

from pathlib import Path

from meshdns.core import process

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (PACKAGE / "resources").is_dir()  # only a wheel has it
RESOURCES = PACKAGE / "resources" if INSTALLED else PACKAGE.parents[1]
HOME = Path.cwd() if INSTALLED else RESOURCES

COMPOSE = RESOURCES / "compose"
NOTEBOOKS = RESOURCES / "notebooks"
WORK = HOME / ".meshdns"  # state, logs
RUNS = HOME / "data" / "runs"
REPORTS = HOME / "reports"

LAB = f"jupyter lab {NOTEBOOKS}" if INSTALLED else "make lab"  # opens the notebooks


def locate(folder: str | Path) -> Path:
    """Sought from here upwards, then in what comes with the program; a relative path means the same in many places."""
    path = Path(str(folder)).expanduser()  # papermill takes a folder called 2026 for a number
    here = Path.cwd()
    return next((place / path for place in (here, *here.parents, RESOURCES) if (place / path).is_dir()), here / path)


def text(path: str | Path) -> str:
    """What a file says, without white space around it; nothing where it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def commit() -> str:
    """The commit of the checkout, with a mark if it has been changed since; empty where there is none."""
    if not (RESOURCES / ".git").exists():  # another project's checkout may lie around
        return ""
    done = process.run("git", "-C", str(RESOURCES), "describe", "--always", "--dirty", "--abbrev=12", timeout_s=10)
    return done.out.strip() if done.ok else ""
