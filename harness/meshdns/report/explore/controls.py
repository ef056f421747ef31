"""The widgets: each change makes a new selection, and picture and table follow together."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets  # type: ignore[import-untyped]

from meshdns import store
from meshdns.analysis import provenance, text
from meshdns.report.explore import drawing, numbers
from meshdns.report.explore.numbers import Selection

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
LONGEST_LIST = 7  # lines of a list before it scrolls
FIRST_EXPERIMENTS = ("request", "lookup")  # what most people want to see first
USUAL = ("fqdn", "wire", "A", "plain", "agent", "none", 5)  # levels to begin with, where there are several
WIDTH = "11.5rem"  # five lists side by side on a laptop
STYLE = """<style>
.meshdns-table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.meshdns-table th, .meshdns-table td { padding: .2rem 1rem .2rem 0; text-align: right; border: 0; }
.meshdns-table th { border-bottom: 1px solid currentColor; }
.meshdns-table :is(th, td):first-child, .meshdns-table :is(th, td):nth-child(2) { text-align: left; }
</style>"""


def panel(runs: str | Path | store.Runs) -> widgets.VBox:
    """Widgets, linked figures and the table behind them, for the runs there."""
    return _Panel(runs if isinstance(runs, store.Runs) else provenance.load(runs)).box


class _Panel:
    def __init__(self, runs: store.Runs) -> None:
        self.runs = runs
        names = [header.name for header in runs.headers]
        self.run = _list("Runs", names, names)
        self.run.layout.width = "auto"
        experiments = sorted(runs.cells["experiment"].unique())
        first = next((each for each in FIRST_EXPERIMENTS if each in experiments), experiments[0])
        self.experiment = widgets.Dropdown(options=experiments, value=first, layout={"width": WIDTH})
        self.arm, self.name_kind = _list("Arms", []), _list("Name kinds", [])
        self.phase = _list("Phases", [(text.Words().heading(each), each) for each in numbers.PHASES], [numbers.TOTAL])
        labels = [(f"p{each:g}", each) for each in PERCENTILES]
        self.percentile = _list("Percentiles", labels, [50.0, 90.0])
        origins = [("due time", "due"), ("actual start", "start")]
        self.origin = widgets.Dropdown(options=origins, layout={"width": WIDTH})
        self.invalid = widgets.Checkbox(description="show invalid cells", indent=False, layout={"width": WIDTH})
        self.further: dict[str, widgets.SelectMultiple] = {}
        self.further_box = widgets.HBox(layout={"flex_flow": "row wrap"})
        self.picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self.table, self.note = widgets.HTML(), widgets.Label()
        self.changing = False
        self.box = self._laid_out()
        self._new_experiment()
        for each in (self.run, self.arm, self.name_kind, self.phase, self.percentile, self.origin, self.invalid):
            each.observe(self._show, "value")
        self.experiment.observe(self._new_experiment, "value")

    def selection(self) -> Selection:
        """What the widgets say."""
        return Selection(
            runs=self.run.value,
            experiment=self.experiment.value,
            arms=self.arm.value,
            phases=self.phase.value,
            name_kinds=self.name_kind.value,
            percentiles=self.percentile.value,
            origin=self.origin.value,
            invalid=self.invalid.value,
            further={name: chosen.value for name, chosen in self.further.items()},
        )

    def _laid_out(self) -> widgets.VBox:
        choices = [
            widgets.VBox([_titled("Experiment", self.experiment), _titled("Latency from", self.origin), self.invalid]),
            *(_titled(each.tooltip, each) for each in (self.arm, self.phase, self.name_kind, self.percentile)),
        ]
        wrapped = {"flex_flow": "row wrap"}
        return widgets.VBox([
            widgets.HBox([*choices, self.further_box], layout=wrapped),
            _titled("Runs", self.run), self.picture, self.table, self.note,
        ])  # fmt: skip

    def _new_experiment(self, _: object = None) -> None:
        """Arms, kinds of name and further factors are those of the experiment."""
        self.changing = True  # each of these assignments would draw
        experiment = self.experiment.value
        for chosen, factor in ((self.arm, "arm"), (self.name_kind, "name_kind")):
            found = numbers.levels(self.runs, experiment, factor)
            usual = [*(level for level in found if level in USUAL), *found][:1]
            _offer(chosen, found, found if factor == "arm" else usual)
        varied = numbers.further_factors(self.runs, experiment)
        begun = numbers.begin_with(self.runs, experiment, USUAL)
        self.further = {name: _list(name, found, begun[name]) for name, found in varied.items()}
        for each in self.further.values():
            each.observe(self._show, "value")
        self.further_box.children = [_titled(name, each) for name, each in self.further.items()]
        self.changing = False
        self._show()

    def _show(self, _: object = None) -> None:
        if self.changing:
            return
        selection = self.selection()
        per_block = numbers.points(self.runs, selection)
        table = numbers.table(per_block)
        self.picture.value = drawing.draw(numbers.ecdf(self.runs, selection), per_block, table)
        self.table.value = STYLE + numbers.shown(table).to_html(index=False, border=0, classes="meshdns-table")
        self.note.value = _left_out(self.runs, selection)


def _left_out(runs: store.Runs, selection: Selection) -> str:
    """How many cells of the selection failed a check, and whether they are in the numbers."""
    every = numbers.chosen(runs, dataclasses.replace(selection, invalid=True))
    invalid = int((~every["valid"].astype(bool)).sum())
    if not len(every):
        return f"{drawing.NOT_MEASURED}: choose at least one of each list"
    state = "included" if selection.invalid else "left out"
    note = f"{invalid} of them invalid and {state}" if invalid else "none invalid"
    return f"{len(every)} cells, {note}; {text.ABSENT} means too few requests for that percentile"


def _list(title: str, options: Sequence[Any], value: Sequence[Hashable] = ()) -> widgets.SelectMultiple:
    chosen = widgets.SelectMultiple(tooltip=title, layout={"width": WIDTH})
    _offer(chosen, options, value)
    return chosen


def _offer(chosen: widgets.SelectMultiple, options: Sequence[Any], value: Sequence[Hashable]) -> None:
    chosen.options = options
    chosen.rows = min(max(len(options), 2), LONGEST_LIST)  # a list of one line looks like a menu
    chosen.value = tuple(value)


def _titled(title: str, widget: widgets.Widget) -> widgets.VBox:
    words = widgets.Label(title.replace("_", " "), style={"font_weight": "bold"})  # text: it may be of a stored run
    return widgets.VBox([words, widget], layout={"margin": "0 .8rem 0 0"})
