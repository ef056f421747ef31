"""What the Dockerfile makes each image of, so that a tag changes with just that."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from string import Template


@dataclass(frozen=True)
class Stage:
    """One of the Dockerfile's, with its build arguments' values in it."""

    text: str  # without comments
    copied: tuple[str, ...]  # paths of the build context
    others: tuple[str, ...]  # stages and images that it starts from or takes files of


@dataclass(frozen=True)
class Recipe:
    """A Dockerfile, and the files that it copies."""

    arguments: Mapping[str, str]  # those before its first stage -> value
    stages: Mapping[str, Stage]
    files: Mapping[str, bytes]  # path in the build context -> content

    def tag(self, name: str, base: str) -> str:
        """12 hex digits that change with anything the stage is made of, `base` among it: what the argument BASE is."""
        return self._digest(name, base)[:12]

    def uses(self, name: str, stage: str) -> bool:
        """Whether one stage is made of another, however far away."""
        made_of = self.stages[name].others if name in self.stages else ()
        return name == stage or any(self.uses(other, stage) for other in made_of)

    def _digest(self, name: str, base: str) -> str:
        stage = self.stages.get(name)
        if stage is None:  # an image by name
            return base if name == self.arguments.get("BASE") else name
        digest = hashlib.sha256(stage.text.encode())
        copied = [path for path in self.files if any(PurePath(path).is_relative_to(each) for each in stage.copied)]
        for path in sorted(copied):
            digest.update(f"{path} {len(self.files[path])}\n".encode() + self.files[path])
        for other in stage.others:
            digest.update(f"{self._digest(other, base)}\n".encode())
        return digest.hexdigest()


def read(dockerfile: Path, package: Path, values: Mapping[str, str]) -> Recipe:
    """What it says and copies, of the package or of its own folder; `values` are of arguments that have another."""
    uncommented = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    head, *texts = re.split(r"^(?=FROM )", uncommented, flags=re.MULTILINE)
    arguments = {**dict(re.findall(r"^ARG (\w+)=(\S*)$", head, re.MULTILINE)), **values}
    stages = dict(_stage(text, arguments) for text in texts)
    roots = {package.name: package.parent}
    files = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for name in sorted({name for stage in stages.values() for name in stage.copied})
        for root in [roots.get(Path(name).parts[0], dockerfile.parent)]
        for path in (root / name, *(root / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    return Recipe(arguments, stages, files)


def _stage(text: str, arguments: Mapping[str, str]) -> tuple[str, Stage]:
    first, _, rest = text.partition("\n")
    first = Template(first).safe_substitute(arguments)
    _, origin, _, name = first.split()
    copied = [path for line in re.findall(r"^COPY (?!--)(.+) \S+$", rest, re.MULTILINE) for path in line.split()]
    others = dict.fromkeys([origin, *re.findall(r"\bfrom=([^\s,]+)", rest)])
    return name, Stage(f"{first}\n{rest}", tuple(copied), tuple(others))
