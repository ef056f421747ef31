"""A part of the page that `make conformance` writes."""

from __future__ import annotations

from dataclasses import dataclass

MOST = 60  # lines of what is wrong


@dataclass(frozen=True)
class Section:
    """What one differential found, and what it held it against."""

    title: str
    intro: str
    wrong: list[str]  # what is not as stated
    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """In Markdown."""
        said = "Nothing else differs." if not self.wrong else f"{len(self.wrong)} findings are not as stated:"
        found = [f"- {line[:400]}" for line in self.wrong[:MOST]]
        table = [self.columns, ["---"] * len(self.columns), *self.rows]
        lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
        return "\n".join(
            [f"## {self.title}", "", self.intro, "", said, *([""] if found else []), *found, "", *lines, ""]
        )
