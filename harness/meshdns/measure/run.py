"""A run of a plan: prepared, measured block by block on a place that is up, stored; it can go on after a stop."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from meshdns import store
from meshdns.core import errors
from meshdns.core.progress import Progress
from meshdns.lab.place import Place
from meshdns.measure import facts, plan, session
from meshdns.measure.block import Block, measure_block, now, require_some
from meshdns.measure.plan import Plan


def execute(what: Plan, place: Place, root: Path, progress: Progress, resume: Path | None = None) -> Path:
    """Every block of the plan is stored; the run's folder. Raises what the place, `watch` and `store` raise.

    Interrupted or failed, it leaves `<name>.partial` with the complete blocks.
    """
    with session.opened(place, progress) as opened:
        require_some(what, opened.refused)
        with opened.during("before the first block"):
            known = facts.gather(what, opened)
        made_of = dataclasses.replace(what.world, live=place.world.live)
        writer = _resumed(resume, what, known) if resume else store.create(root, _header(what, known), made_of)
        for number in writer.missing():
            _keep(writer, measure_block(what, number, place, opened))
        with opened.during("after the last block"):
            closing = {"resolutions": facts.resolutions(opened)}
    return writer.finish(now(), closing)


def _keep(writer: store.RunWriter, block: Block) -> None:
    writer.write_block(block.number, block.table, block.records, block.started)
    invalid = [one for one in block.records if not one.valid]
    writer.log(f"block {block.number}: {len(block.records)} trials, {len(invalid)} invalid")
    for one in invalid:
        writer.log(f"block {block.number} cell {one.cell}: {'; '.join(one.reasons)}")


def _header(what: Plan, known: dict[str, Any]) -> store.RunHeader:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{what.name}-{stamp}-{secrets.token_hex(2)}"
    return store.RunHeader(name, what.to_json(), what.seed, now(), what.blocks, known)


def _resumed(path: Path, what: Plan, known: dict[str, Any]) -> store.RunWriter:
    """The unfinished run, if it is of this plan and of this machine."""
    writer = store.resume(path)
    if plan.from_json(writer.header.plan, str(path), what.world) != what:
        raise errors.InputError(
            f"is a run of another plan ({writer.header.plan.get('name')})", place=str(path), step="give its own plan"
        )
    before, here = writer.header.facts.get("machine", {}), known["machine"]
    if before.get("machine_id_hash") != here["machine_id_hash"]:
        raise errors.InputError("was begun on another machine", place=str(path), step="resume it there, or start anew")
    _require_images(path, writer.header.facts.get("images", {}), known["images"])
    writer.log(f"resumed; boot {here['boot_id_hash']}, commit {known['versions']['commit']}")
    return writer


def _require_images(path: Path, before: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises InputError unless the images are those that the run was begun with: one run, one version of the code."""
    for role in sorted({*before, *here}):
        old, new = (_image_name(images.get(role)) for images in (before, here))
        if old != new:
            raise errors.InputError(
                f"was begun with another image of {role} ({old}; now {new})",
                place=str(path),
                step="start anew, without --resume; `meshdns report --runs` reads what is stored of this one",
            )


def _image_name(image: Mapping[str, str] | None) -> str:
    """An image as a person may look it up, and what tells it from every other."""
    return f"{image['tag']} {image['id'].removeprefix('sha256:')[:12]}" if image else "none"
