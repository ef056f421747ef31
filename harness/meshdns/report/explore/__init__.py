"""Explore runs by hand: choose cells, see their distributions, their blocks and the table behind them.

`numbers` turns a selection into tables, `drawing` draws them, `controls` are the widgets that make a selection.
"""

from meshdns.report.explore.controls import panel

__all__ = ["panel"]
