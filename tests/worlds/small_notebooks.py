"""Small notebooks of the form all ours have, for tests of what runs and publishes them: `write(folder, stem)`."""

from __future__ import annotations

from pathlib import Path

import nbformat

FIGURE = """
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
ax.plot([1, 2, 4])
ax.set_xlabel("blocks");
"""
TABLE = "import pandas as pd\npd.DataFrame({'arm': ['plain', 'mode1'], 'p50': ['210 µs', '214 µs']}, index=['', ''])"
CHECKS = 'from meshdns.core import errors\nif fail:\n    raise errors.ReportError("only 3 blocks <b>", place="run-x")'
PARAMETERS = """
runs: str = "data/sample"  # folder of runs
percentile: float = 99.0  # tail percentile to compare
fail: bool = False  # let the check fail
"""


def write(folder: Path, stem: str, *, answer: str = 'print(f"Mode 1 costs 4 µs more at p{percentile}.")') -> Path:
    """A notebook with every part."""
    code = {
        "parameters": PARAMETERS,
        "load": "from pathlib import Path\nassert Path(runs).is_dir(), runs",
        "answer": answer,
        "figure": FIGURE,
        "table": TABLE,
        "checks": CHECKS,
        "provenance": "from IPython.display import Markdown\nMarkdown('Runs: as told here')",
    }
    cells = [nbformat.v4.new_markdown_cell(f"# What does {stem} cost?\nWhy it matters.", id="title")]
    for tag, source in code.items():
        cells.append(nbformat.v4.new_code_cell(source.strip(), id=f"{tag}-cell", metadata={"tags": [tag]}))
        if tag == "figure":
            cells.append(nbformat.v4.new_markdown_cell("*Lower* is better & faster.", id="caption"))
        if tag == "table":
            cells.append(nbformat.v4.new_markdown_cell("Medians of *all* blocks.", id="table-caption"))
            cells.append(nbformat.v4.new_markdown_cell("## What could be wrong\nMuch.", id="doubts"))
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / f"{stem}.ipynb"
    nbformat.write(notebook, path)
    return path
