"""pyproject.toml, environment.yml and requirements.lock ask for the same things."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {"docker": "docker-py", "kubernetes": "python-kubernetes"}  # where conda-forge's name differs from PyPI's


def project() -> tuple[dict[str, Requirement], str]:
    """The direct requirements, by name, and the Python bound."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = table["optional-dependencies"]
    lines = table["dependencies"] + [line for extra in extras.values() for line in extra]
    needs = [need for need in map(Requirement, lines) if need.name != table["name"]]  # an extra holds another one
    found = {canonicalize_name(need.name): need for need in needs}
    assert len(found) == len(needs), "a package is listed twice"
    return found, table["requires-python"]


def test_conda_asks_for_the_same():
    needs, python = project()
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in listed["dependencies"] if isinstance(entry, str)]
    assert plain[0].startswith("python "), "the Python bound stands first"
    conda = {need.name: str(need.specifier) for need in map(Requirement, plain) if need.name != "pip"}
    assert listed["dependencies"][-1] == {"pip": [str(needs.pop("xds-protos")), "-e ."]}  # conda-forge has none
    expected = {CONDA_NAMES.get(name, name): str(need.specifier) for name, need in needs.items()}
    assert conda == {"python": str(Requirement(f"python{python}").specifier), **expected}
    assert listed["channels"] == ["conda-forge", "nodefaults"]


def test_the_lock_satisfies_every_bound_with_hashes():
    text = (ROOT / "requirements.lock").read_text()
    pins: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", text):
        pin = re.match(r"([a-z0-9._-]+)==([^\s;]+)", entry)
        assert pin, f"not a pin: {entry.splitlines()[0]}"
        assert "--hash=sha256:" in entry, f"{pin[1]} has no hash"
        pins.setdefault(canonicalize_name(pin[1]), []).append(pin[2])
    for name, need in project()[0].items():
        assert name in pins, f"{name} is not locked: make the lock again (CONTRIBUTING.md)"
        assert all(need.specifier.contains(version) for version in pins[name]), f"{name} {pins[name]} against {need}"


def test_the_control_planes_image_holds_the_locked_versions():
    locked = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"(?:grpcio|protobuf|xds-protos)==[\d.]+", (ROOT / "compose/images/Dockerfile").read_text())
    assert len(pins) == 3
    assert all(re.search(rf"^{re.escape(pin)}\b", locked, re.MULTILINE) for pin in pins), pins
