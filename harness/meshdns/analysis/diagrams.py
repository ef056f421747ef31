"""A grid of words: what became of requests, told apart by words and lightness, so that it reads in grey."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from meshdns.analysis import absent, drawing

# Lightness of a cell in the grid, by the word that begins it.
_SHADES = {"proxied": "#ffffff", "direct": "#e4e4e4", "looped": "#9a9a9a", "refused": "#cccccc", "lost": "#b4b4b4"}
_MIXED = "#f4f4f4"


def grid(table: pd.DataFrame) -> Axes:
    """A row per answer, a column per condition, the outcome in words on a ground whose lightness repeats it."""
    with drawing.axes(0.9 + 0.46 * max(len(table), 2)) as ax:
        ax.set_xlim(0, len(table.columns))
        ax.set_ylim(max(len(table), 1), 0)
        for y, (_, words) in enumerate(table.iterrows()):
            for x, said in enumerate(words):
                _cell(ax, (x, y), str(said))
        if table.empty:
            absent.tell(absent.known(table))
            ax.text(0.5, 0.5, "not measured in these runs", transform=ax.transAxes, ha="center", fontsize=10)
        ax.set_yticks([y + 0.5 for y in range(len(table))], [_filled(name, 22) for name in table.index])
        heads = [_filled(name, 14) for name in table.columns]
        ax.set_xticks([x + 0.5 for x in range(len(heads))], heads)
        ax.xaxis.tick_top()
        ax.tick_params(length=0, labelsize=8.5)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        return ax


def _filled(name: object, width: int) -> str:
    """In lines; arms, which have hyphens, stay whole."""
    return textwrap.fill(str(name), width, break_on_hyphens=False, break_long_words=False)


def _cell(ax: Axes, place: tuple[int, int], said: str) -> None:
    """The outcome, and below it what ended it."""
    word, _, end = said.partition("\n")
    ground = _SHADES.get(word, _MIXED)
    ax.add_patch(Rectangle(place, 1, 1, facecolor=ground, edgecolor="#ffffff", linewidth=1.5))
    x, y = place[0] + 0.5, place[1] + 0.5
    lines = end.count(", ") + bool(end)
    words = word.replace(", ", ",\n")  # several outcomes
    ax.text(x, y - 0.12 * lines, words, ha="center", va="center", fontsize=9, fontweight="bold")
    ax.text(x, y + 0.17, end.replace(", ", ",\n"), ha="center", va="center", fontsize=6.5, linespacing=1)
