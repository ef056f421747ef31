"""The numbers that the notebooks print from the recorded sample, held by tests/printed/*.json.

`python tests/printed.py` writes them anew: only where a change of the numbers is meant, and then the commit says why.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

import papermill

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix("")
NUMBER = re.compile(r"(?<![\w.])[-+±]?\d+(?:[.,]\d+)*(?![\w])")  # not those of names: p50, mode1, 10.96.1.10 is one


def numbers_of(executed: Any) -> dict[str, list[str]]:
    """Cell -> every number in its words and tables, in the order in which they stand."""
    found = {}
    for cell in executed.cells:
        texts = [each.get("data", {}) for each in cell.get("outputs", [])]
        words = [data.get("text/html") or data.get("text/markdown", "") for data in texts]
        plain = html.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", " ".join(words), flags=re.DOTALL))
        if numbers := NUMBER.findall(plain.replace("\u2212", "-")):
            found[cell.id] = numbers
    return found


def recorded(stem: str) -> dict[str, list[str]] | None:
    """What the notebook of that name is known to print; None where there is no record of it."""
    record = RECORD / f"{stem}.json"
    return json.loads(record.read_text()) if record.exists() else None


if __name__ == "__main__":
    RECORD.mkdir(exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        executed = papermill.execute_notebook(str(notebook), None, cwd=str(ROOT), progress_bar=False)
        lines = [f"{json.dumps(cell)}: {json.dumps(found)}" for cell, found in numbers_of(executed).items()]
        (RECORD / f"{notebook.stem}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
