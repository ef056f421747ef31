"""What traced requests did, side by side.

A sequence has a lifeline per process and an arrow per message, in the order of the capture. What is told apart is told
by words and lines, so that it reads in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from meshdns.analysis import absent, drawing, looks
from meshdns.studies.path import hops
from meshdns.studies.path.flows import Message

# The order in which a request meets them.
_LIFELINES = (
    hops.APPLICATION, hops.DNS_PROXY, hops.COREDNS, hops.SIDECAR, hops.SERVER_SIDECAR, hops.SERVER,
)  # fmt: skip
_BEGIN = 0.6  # rows above the first message
_ROW = 0.31  # inches
_STAGGER = 0.55  # rows by which every second name is raised, as neighbours are wider than their distance
_LETTERS = 43  # of the small print fit into half the page's width
_NAME = 27  # letters of a name that are shown before it is cut
_LINES = {"DNS": (0, (4, 1.6)), "TCP": "-"}
_WIDTHS = {True: 0.9, False: 2.0}  # of an arrow inside a pod, and from one to another
_WORDS = {"connects": "connect", "closes": "close", "refuses": "refused"}  # of messages that say nothing


@dataclass(frozen=True)
class _Arrow:
    at_us: float
    begin: str  # lifelines
    end: str
    kind: str
    inside: bool  # a pod
    label: str
    note: str  # addresses, where they were rewritten


def sequence(found: Mapping[str, hops.Path], *arms: str) -> Figure:
    """The traced requests of these arms side by side; a word in the place of one that is missing."""
    drawn = {arm: _arrows(found[arm]) if arm in found else [] for arm in arms}
    seen = looks.Looks({arm: looks.Looks().pod(arm) for arm in found})
    rows = max([6, *(len(arrows) for arrows in drawn.values())])
    if not any(drawn.values()):
        absent.tell([absent.TRACES])
    with drawing.grid(1, len(arms), _ROW * (rows + 3)) as places:
        for ax, (arm, arrows) in zip(places[0], drawn.items(), strict=True):
            ax.set_title(arm, color=seen[arm].colour, fontweight="bold")
            _panel(ax, arrows, rows)
            if not arrows:
                ax.text(0.5, 0.5, "not traced in these runs", transform=ax.transAxes, ha="center", fontsize=9)
        figure: Figure = places[0, 0].figure
        return figure


def _arrows(path: hops.Path) -> list[_Arrow]:
    """Messages in the order in which they passed; what repeats itself is drawn once."""
    arrows = []
    for row in path.rows():
        hop, first = row.hop, True
        for message in hop.messages:
            ends = (hop.source, hop.target) if message.forward else (hop.target, hop.source)
            note = f"{hop.asked} → {hop.reached}" if hop.rewritten and first else ""
            arrows.append(_Arrow(message.at_us, *ends, hop.kind, hop.inside, _label(row, message), note))
            first = False
        if hop.ending == "lost":
            ends = (hop.target, hop.source)
            arrows.append(_Arrow(hop.messages[-1].at_us, *ends, hop.kind, hop.inside, "nothing comes back", ""))
    return sorted(arrows, key=lambda arrow: arrow.at_us)


def _label(row: hops.Row, message: Message) -> str:
    said = message.says.partition(": ")[2] if message.what == "answers" else message.says
    name, space, rest = said.partition(" ")
    if len(name) > _NAME:
        said = f"{name[: _NAME - 1]}…{space}{rest}"
    words = _WORDS.get(message.what) or said or message.what
    times = ("own: " if row.hop.own else "") + (f"{row.times} × " if row.times > 1 else "")
    return f"{times}{words}" + (f" ({message.packets})" if row.hop.kind == "TCP" else "")


def _panel(ax: Axes, arrows: Sequence[_Arrow], rows: int) -> None:
    ends = {end for arrow in arrows for end in (arrow.begin, arrow.end)}
    names = [name for name in _LIFELINES if name in ends] + sorted(ends - set(_LIFELINES))
    ax.set_axis_off()
    ax.set_xlim(-0.5, max(len(names), 1) - 0.5)
    ax.set_ylim(rows + 0.4, -2.2)
    for x, name in enumerate(names):
        ax.plot([x, x], [-0.4, len(arrows) + 0.1], color="#bbbbbb", linewidth=0.9, zorder=0)
        above = -0.5 - _STAGGER * (x % 2)
        ax.text(x, above, name.replace(" ", "\n"), ha="center", va="bottom", fontsize=7.5, fontweight="bold")
    for y, arrow in enumerate(arrows):
        _draw(ax, y + _BEGIN, arrow, names)


def _draw(ax: Axes, y: float, arrow: _Arrow, names: Sequence[str]) -> None:
    """The arrow, above it what was said; a rewritten address follows the word or stands below."""
    begin, end = names.index(arrow.begin), names.index(arrow.end)
    style = {"arrowstyle": "-|>", "linestyle": _LINES[arrow.kind], "linewidth": _WIDTHS[arrow.inside],
             "color": "#222222", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}  # fmt: skip
    ax.annotate("", (end, y), (begin, y), arrowprops=style)
    for words, below, colour in ((arrow.label, False, "#000000"), (arrow.note, True, "#555555")):
        half = len(words) / _LETTERS * len(names) / 2
        middle = min(max((begin + end) / 2, half - 0.5), len(names) - 0.5 - half)
        ax.text(middle, y + (0.08 if below else -0.06), words, ha="center", va="top" if below else "bottom",
                fontsize=6.5, color=colour, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.2})  # fmt: skip
