"""data/examples: what is written beside the examples is what the tools take, and the examples are of one mesh."""

import dataclasses
import json
import re
from pathlib import Path

from meshdns.interception.options import Options
from meshdns.istio import nametable, reader, verbs

EXAMPLES = Path(__file__).resolve().parent.parent / "data" / "examples"


def test_every_option_of_rules_is_documented_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| \w", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    assert [(key, json.loads(shown)) for key, shown in rows] == [
        (key, list(value) if isinstance(value, tuple) else value) for key, value in defaults.items()
    ]


def test_the_name_table_is_the_meshs() -> None:
    model = verbs.build(reader.read([EXAMPLES / "mesh"]))
    made = {host: {**vars(name), "ips": [*name.ips]} for host, name in nametable.build(model).items()}
    shown = json.loads((EXAMPLES / "names.json").read_text())["table"]
    assert shown == {host: {key: entry[key] for key in shown[host]} for host, entry in made.items()}
    left_out = {entry[key] for host, entry in made.items() for key in entry.keys() - shown[host]}
    assert left_out <= {""}
