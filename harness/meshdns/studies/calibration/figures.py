"""The self-test: its own figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import ticker
from matplotlib.axes import Axes

from meshdns.analysis import drawing, looks
from meshdns.studies.calibration import generators


def residuals(table: pd.DataFrame) -> Axes:
    """Measured minus fitted line against the delay that was added: what measures straight stays near zero."""
    if table.empty:
        return drawing.unmeasured([generators.LADDER])
    with drawing.axes(3.0) as ax:
        ax.axhline(0, color="#222222", linewidth=1)
        ax.plot(table["added_us"], table["residual_us"], color=looks.OTHER.colour, marker=looks.OTHER.marker)
        ax.grid(visible=True, axis="y")
        reach = max(6.0, 1.2 * float(table["residual_us"].abs().max()))
        ax.set_ylim(-reach, reach)
        ax.set_xlabel("delay that the calibration target added, µs")
        ax.set_ylabel("measured minus line, µs")
        return ax


def biases(values: pd.DataFrame) -> Axes:
    """The share of requests whose stamps exceed the wire's by at most so much."""
    series = {
        "DNS phase, lookup": values[values["kind"] == "lookup"]["dns_bias"],
        "DNS phase, request": values[values["kind"] == "request"]["dns_bias"],
        "total, request": values[values["kind"] == "request"]["total_bias"],
    }
    shown = {name: drawing.us(each.dropna()) for name, each in series.items() if each.notna().any()}
    if not shown:
        return drawing.unmeasured([generators.WIRE])
    lines = (("-", "#222222"), ("--", "#777777"), (":", "#222222"))
    with drawing.axes(3.2) as ax:
        for (name, each), (line, shade) in zip(shown.items(), lines, strict=False):
            sns.ecdfplot(x=each, ax=ax, label=name, linestyle=line, color=shade)
        for gate_ns in generators.BIAS_NS.values():
            ax.axvline(drawing.us(gate_ns), color="#bbbbbb", linewidth=1)
        right = max([25.0, *(1.2 * float(np.quantile(each, 0.98)) for each in shown.values())])
        ax.set_xlim(min([0.0, *(float(np.quantile(each, 0.01)) for each in shown.values())]), right)
        ax.xaxis.set_major_locator(ticker.MaxNLocator(6))
        ax.set_xlabel("agent's time minus time between packets, µs")
        ax.set_ylabel("share of requests")
        ax.legend(loc="lower right")
        return ax
