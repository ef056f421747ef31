"""One run of a plan, block by block, against a testbed that is up; it can be stopped and resumed between blocks.

Order of a trial: counters, CPU, load, CPU, counters. Nothing but the load happens between the two CPU readings.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from meshdns import store
from meshdns.core import errors
from meshdns.core.progress import Progress
from meshdns.lab import plane
from meshdns.lab.compose.channel import Channel
from meshdns.lab.compose.testbed import Testbed
from meshdns.lab.compose.watch import Watch
from meshdns.measure import capture, counters, duration, facts, jobs, plan, rulers, trace, validity
from meshdns.measure.conditions import Conditions
from meshdns.measure.plan import Cell, Plan, Trial
from meshdns.store import samples

AGENT = ["python3", "-m", "agent"]
ANSWER_SLACK_S = 30  # beyond the load's own limit: sending the columns through the engine
_MODES = {"mode1", "mode2-agent"}  # traced whatever the plan asks: their paths are what the two modes are
TRACED = "http://{service}/bytes/1024"  # as a neighbour asks; both sidecars, where there are any
CONFORMANCE_TIMEOUT_S = 60  # some fifty questions, most answered at once
ATTEMPTS = 3  # measurements of one cell in one block, until one is valid
CHANGE_AT = 0.25  # of a load's duration


def execute(what: Plan, bed: Testbed, root: Path, progress: Progress, resume: Path | None = None) -> Path:
    """Every block of the plan is stored; the run's folder. Raises what `testbed`, `watch` and `store` raise.

    Interrupted or failed, it leaves `<name>.partial` with the complete blocks.
    """
    watch = Watch(bed)
    with contextlib.ExitStack() as stack:
        with watch.during("before the first block"):
            observers = stack.enter_context(bed.observers())
            agents = stack.enter_context(Agents(bed))
            refused = _refused(bed)
            _require_some(what, refused)
            known = _known(what, bed, observers, agents, refused)
            conditions = stack.enter_context(Conditions(bed, observers))
            reader = counters.Reader(bed, observers)
        writer = _resumed(resume, what, known) if resume else store.create(root, _header(what, known), what.world)
        session = Session(bed, agents, observers, reader, conditions, progress=progress)
        for number in writer.missing():
            started = _now()
            with watch.during(f"while block {number} was measured", conditions.ended):
                measured = list(_block(session, what, number, refused))
            writer.write_block(number, _joined(measured), [one.record for one in measured], started)
            invalid = [one for one in measured if not one.record.valid]
            writer.log(f"block {number}: {len(measured)} trials, {len(invalid)} invalid")
            for one in invalid:
                writer.log(f"block {number} cell {one.record.cell}: {'; '.join(one.record.reasons)}")
        with watch.during("after the last block", conditions.ended):
            closing = {"resolutions": _resolutions(reader)}
    return writer.finish(_now(), closing)


def _known(
    what: Plan, bed: Testbed, observers: Mapping[str, Channel], agents: Agents, refused: Mapping[str, str]
) -> dict[str, Any]:
    """The facts of a run: what was true before its first block."""
    known = facts.gather(bed, observers, _arms(what) | _MODES)
    if "xds" in bed.groups:
        known["governed"] = plane.Plane(bed, observers["observer"]).told()
    known |= {"traces": _traces(bed, observers, agents, what, refused), "refused": refused}
    known["conformance"] = _conformance(bed, what)
    # Last, when the machine has come to rest after the start of everything, as it is while blocks are measured.
    known["clock"] = {"plain": _clock(agents.of("plain", 5))}
    return known


def _arms(what: Plan) -> set[str]:
    """Those that any of its trials asks."""
    return {cell.arm for experiment in what.experiments for cell in experiment.cells()}


def _refused(bed: Testbed) -> dict[str, str]:
    """Arms and backends whose way of capturing is not allowed on this machine -> why."""
    pods = bed.refusals()
    arms = {client.arm: pods[client.pod] for client in bed.clients() if client.pod in pods}
    return arms | {each.backend: pods[each.name] for each in bed.world.inbound if each.name in pods}


def _require_some(what: Plan, refused: Mapping[str, str]) -> None:
    """Raises EnvironmentProblem where nothing is left to measure."""
    if any(_allowed(what.block(number), refused) for number in range(what.blocks)):
        return
    reasons = "; ".join(dict.fromkeys(refused.values()))
    raise errors.EnvironmentProblem(
        f"nothing of this plan can be measured here ({reasons})", place=what.name, step="take another plan or machine"
    )


def _allowed(trials: Sequence[Trial], refused: Mapping[str, str]) -> list[Trial]:
    """Those whose arm and backend capture in a way that this machine allows."""
    return [trial for trial in trials if not {trial.cell.arm, trial.cell.backend} & refused.keys()]


def _joined(measured: Sequence[Measured]) -> pa.Table:
    """All samples of a block; none where this machine allows none of its trials."""
    return pa.concat_tables([samples.SCHEMA.empty_table(), *(one.table for one in measured)]).unify_dictionaries()


def _traces(
    bed: Testbed, observers: Mapping[str, Channel], agents: Agents, what: Plan, refused: Mapping[str, str]
) -> dict[str, Any]:
    """One request of each arm that resolves names, observed at every hop: arm -> trace."""
    arms, url = _arms(what), TRACED.format(service=bed.world.looked_up.name)
    return {
        client.arm: trace.observe(bed, observers, agents.of(client.arm, 5), client.arm, url).to_json()
        for client in bed.clients()
        if client.arm in arms | _MODES
        and not client.governed
        and client.arm not in ("ip", "plain-aa", *bed.world.answering, *refused)
    }


def _resolutions(reader: counters.Reader) -> dict[str, Any]:
    """How often the sidecar of mode 1 has resolved endpoints since its start, by its own count and by the rules'."""
    (counts,) = reader.counts(Cell("closing", "mode1"))
    names = {"attempts": "pod/envoy/cluster_resolutions", "queries": "pod/rule/dns_proxy"}
    return {"mode1": {name: counts[key] for name, key in names.items()}}


def _conformance(bed: Testbed, what: Plan) -> dict[str, Any]:
    """How the DNS proxies of mode 2 answer the conformance suite, asked as an application asks: arm -> rows."""
    arms = _arms(what)
    suite = ["python3", "-m", "dnsproxy.conformance", "--world", "/state/conformance.json"]
    suite += ["--server", f"{bed.world.dns_cluster_ip}:53", "--timeout-s", "1"]
    return {
        client.arm: json.loads(bed.within(client.pod, "dnsproxy", suite, CONFORMANCE_TIMEOUT_S))
        for client in bed.clients()
        if client.arm in arms and client.dns_proxy and client.mechanism == "iptables" and not client.governed
    }


def _clock(agent: Channel) -> dict[str, Any]:
    """What the agent finds out about its own clock, spinning for a second."""
    found = agent.ask({"kind": "clock"}, ANSWER_SLACK_S)[0]["clock"]
    return {
        "resolution_ns": found["resolution_ns"],
        "cost_p50_ns": found["read_p50_ns"],
        "cost_p99_ns": found["read_p99_ns"],
        "gaps_over_50us": found["gaps"],
        "gap_share": found["gap_ns"] / found["spin_ns"],
        "longest_gap_ns": found["longest_gap_ns"],
        "backwards": found["backwards"],
    }


def _block(session: Session, what: Plan, number: int, refused: Mapping[str, str]) -> Iterator[Measured]:
    """Every trial of a block, an invalid one measured again at once: what disturbed it seldom lasts.

    The rule is the same whatever the reason, and the invalid ones are kept beside the valid one.
    """
    index = 0
    trials = _allowed(what.block(number), refused)
    for before, trial, after in zip([None, *trials], trials, [*trials[1:], None], strict=False):
        for _ in range(ATTEMPTS):
            measured = session.trial(index, trial, _seed(what, number, index), after.cell if after else None)
            index += 1
            yield measured
            if measured.record.valid:
                break
        session.done(trial, before)


def _seed(what: Plan, block: int, index: int) -> int:
    """The seed of one trial's arrivals: recorded by being a function of what is recorded."""
    return int.from_bytes(hashlib.sha256(f"{what.seed}/{block}/{index}".encode()).digest()[:4], "big")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _header(what: Plan, known: dict[str, Any]) -> store.RunHeader:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{what.name}-{stamp}-{secrets.token_hex(2)}"
    return store.RunHeader(name, what.to_json(), what.seed, _now(), what.blocks, known)


def _resumed(path: Path, what: Plan, known: dict[str, Any]) -> store.RunWriter:
    """The unfinished run, if it is of this plan and of this machine."""
    writer = store.resume(path)
    if plan.from_json(writer.header.plan, str(path), what.world) != what:
        raise errors.InputError(
            f"is a run of another plan ({writer.header.plan.get('name')})", place=str(path), step="give its own plan"
        )
    before, now = writer.header.facts.get("machine", {}), known["machine"]
    if before.get("machine_id_hash") != now["machine_id_hash"]:
        raise errors.InputError("was begun on another machine", place=str(path), step="resume it there, or start anew")
    _require_images(path, writer.header.facts.get("images", {}), known["images"])
    writer.log(f"resumed; boot {now['boot_id_hash']}, commit {known['versions']['commit']}")
    return writer


def _require_images(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises InputError unless the images are those that the run was begun with: one run, one version of the code."""
    for role in sorted({*before, *now}):
        old, new = (_image_name(images.get(role)) for images in (before, now))
        if old != new:
            raise errors.InputError(
                f"was begun with another image of {role} ({old}; now {new})",
                place=str(path),
                step="start anew, without --resume; `meshdns report --runs` reads what is stored of this one",
            )


def _image_name(image: Mapping[str, str] | None) -> str:
    """An image as a person may look it up, and what tells it from every other."""
    return f"{image['tag']} {image['id'].removeprefix('sha256:')[:12]}" if image else "none"


class Agents:
    """Load agents, started when first needed: one per client pod and ndots, since glibc reads RES_OPTIONS once."""

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed
        self._channels: dict[tuple[str, int], Channel] = {}

    def of(self, arm: str, ndots: int) -> Channel:
        """The agent in an arm's client container."""
        key = ("plain" if arm == "null" else arm, ndots)  # the calibration target needs no pod of its own
        if key not in self._channels:
            service = f"{self._bed.world.arms[key[0]].pod}-app"
            self._channels[key] = self._bed.channel(service, AGENT, {"RES_OPTIONS": f"ndots:{ndots}"})
            self._channels[key].ask({"kind": "ping"}, ANSWER_SLACK_S)
        return self._channels[key]

    def __enter__(self) -> Agents:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()


@dataclass(frozen=True)
class Measured:
    """A trial's samples, and what stood around them."""

    table: pa.Table
    record: samples.CellRecord


@dataclass(frozen=True)
class _Load:
    """What came back from a load, before it is judged."""

    table: pa.Table
    agent: dict[str, Any]


class Session:
    """Runs trials one after the other."""

    def __init__(
        self,
        bed: Testbed,
        agents: Agents,
        observers: Mapping[str, Channel],
        reader: counters.Reader,
        conditions: Conditions,
        *,
        progress: Progress,
    ) -> None:
        self._bed, self._agents, self._observers, self._world = bed, agents, observers, bed.world
        self._reader, self._conditions, self._progress = reader, conditions, progress
        self._medians: dict[str, float] = {}
        self._read: dict[Cell, counters.Counts] = {}  # at the end of the last trial, for it and for the one to follow

    def trial(self, index: int, trial: Trial, seed: int, following: Cell | None = None) -> Measured:
        """One trial, measured and judged.

        Counters of the cell to follow are read together with the last ones of this one, to lose no time between them.
        """
        cell = trial.cell
        self._progress.doing(f"{cell.experiment} {cell.arm}")
        changed = self._conditions.prepare(cell)
        before = self._read.get(cell, {})
        if changed or cell not in self._read:
            (before,) = self._reader.counts(cell)
        started_ns, used_before = time.monotonic_ns(), self._reader.usage(cell)
        load = self._load(index, trial, seed)
        used = self._reader.usage(cell)
        # A pod whose sidecar comes and goes is read on its own.
        alone = following is None or following == cell or cell.answer != "none" or following.answer != "none"
        read = [cell] if alone or following is None else [cell, following]
        self._read = dict(zip(read, self._reader.counts(*read), strict=True))
        after = self._read[cell]
        counts = counters.difference(cell, before, after, self._world)
        reasons = validity.reasons(trial, load.table, counts, load.agent, world=self._world, nets=self._bed.nets)
        record = samples.CellRecord(
            cell=index,
            parameters=_parameters(cell),
            valid=not reasons,
            reasons=reasons,
            offered=trial.count,
            started_ns=started_ns,
            wall_s=_wall_s(load.table),
            counters={name: count for name, count in counts.items() if count > 0},
            cpu_us={name: round(use.cpu_us - used_before[name].cpu_us, 1) for name, use in used.items()},
            memory_bytes={name: use.memory_bytes for name, use in used.items() if use.memory_bytes is not None},
            agent=load.agent,
        )
        self._note(cell, load.table)
        return Measured(load.table, record)

    def done(self, trial: Trial, before: Trial | None) -> None:
        """The bar moves on by a trial, however often it was measured, and shows how the medians stand."""
        note = ", ".join(f"{name} {value:.0f} µs" for name, value in sorted(self._medians.items()))
        self._progress.advance(duration.of_trial(trial, before, self._world), note)

    def _load(self, index: int, trial: Trial, seed: int) -> _Load:
        cell = trial.cell
        if cell.tool != "agent":
            table, known = rulers.measure(
                index, trial, self._world, self._bed.name(f"{self._world.arms[cell.arm].pod}-app")
            )
            return _Load(table, known)
        agent = self._agents.of(cell.arm, cell.ndots)
        job = jobs.job(trial, self._world, self._bed.nets, seed)
        limit_s = job["duration_limit_s"] + trial.timeout_ms / 1000 + ANSWER_SLACK_S
        with self._captured(trial) as captured, self._changing(trial) as changed:
            header, body = agent.ask(job, limit_s)
        table = jobs.table(index, header, body)
        return _Load(captured.joined(table, cell) if captured else table, header["facts"] | changed)

    def _await_usual(self, cell: Cell, governed: plane.Plane) -> None:
        """What an earlier trial changed is forgotten by name tables, and by sidecars that resolve names themselves."""
        time.sleep(duration.FORGET_S)
        service = self._world.backends[cell.backend]
        if service.resolved:
            governed.await_resolved(service.fqdn, self._observers[self._world.arms[cell.arm].pod])

    @contextlib.contextmanager
    def _changing(self, trial: Trial) -> Iterator[dict[str, Any]]:
        """A change comes about while the load runs, and is taken back after it; what is known of it then."""
        kind, changed, failed = trial.cell.change, dict[str, Any](), list[errors.MeshdnsError]()
        encrypted = list[float]()  # right after the change, where replicas stay so that their counters tell
        if kind == "none" or self._conditions.plane is None:
            yield changed
            return
        governed = self._conditions.plane
        self._await_usual(trial.cell, governed)

        def act() -> None:
            try:
                changed["change"] = governed.change(kind)
                if not any(plane.EFFECTS[kind]):
                    encrypted.append(self._reader.encrypted(trial.cell))
            except errors.MeshdnsError as error:
                failed.append(error)

        timer = threading.Timer(trial.seconds(self._world) * CHANGE_AT, act)
        timer.start()
        try:
            yield changed
            timer.join()
            if encrypted:
                changed["change"]["mutual_tls"] = self._reader.encrypted(trial.cell) - encrypted[0]
        finally:
            timer.join()
            governed.restore(kind)
        if failed:
            raise failed[0]

    @contextlib.contextmanager
    def _captured(self, trial: Trial) -> Iterator[_Capture | None]:
        """Packets on the client pod's interface while the load runs, where the plan asks for it."""
        if not trial.capture:
            yield None
            return
        # The calibration target is asked from the plain pod.
        client = self._bed.world.arms["plain" if trial.cell.arm == "null" else trial.cell.arm]
        observer = self._observers[client.pod]
        observer.ask({"op": "capture", "interfaces": ["eth0"], "ports": [53, 8080, 8443]}, ANSWER_SLACK_S)
        captured = _Capture(self._bed.nets.pod(client.host))
        try:
            yield captured
        finally:
            reply, _ = observer.ask({"op": "captured"}, ANSWER_SLACK_S)
            captured.pcap = base64.b64decode(reply["pcap"]["eth0"])

    def _note(self, cell: Cell, table: pa.Table) -> None:
        """Live medians of the headline experiments, by arm."""
        if cell.experiment in ("lookup", "request") and table.num_rows:
            took = table.column("end_ns").to_numpy() - table.column("start_ns").to_numpy()
            self._medians[f"{cell.experiment} {cell.arm}"] = float(np.median(took)) / 1000


class _Capture:
    """A capture that is filled when the load has ended; its stamps become columns."""

    def __init__(self, pod: str) -> None:
        self._pod = pod
        self.pcap = b""

    def joined(self, table: pa.Table, cell: Cell) -> pa.Table:
        """The samples with `wire_dns_ns` and `wire_total_ns` where packets were found."""
        seen = list(capture.packets(self.pcap, self._pod))
        found = self._exchanges(seen, table, cell)
        for name, values in (
            ("wire_dns_ns", [one.dns_ns for one in found]),
            ("wire_total_ns", [one.total_ns for one in found]),
        ):
            position = table.schema.get_field_index(name)
            table = table.set_column(position, table.schema.field(name), pa.array(values, pa.int64()))
        return table

    @staticmethod
    def _exchanges(seen: list[capture.Packet], table: pa.Table, cell: Cell) -> list[capture.Exchange]:
        if cell.connection == "keepalive" and cell.concurrency == 1:
            return capture.in_turn(seen, table.num_rows)
        ports = table.column("local_port").to_pylist()
        return capture.lookups(seen, ports) if cell.kind == "lookup" else capture.requests(seen, ports)


def _parameters(cell: Cell) -> dict[str, samples.Parameter]:
    return {name: getattr(cell, name) for name in cell.__dataclass_fields__}


def _wall_s(table: pa.Table) -> float:
    if not table.num_rows:
        return 0.0
    return float(table.column("end_ns").to_numpy().max() - table.column("due_ns").to_numpy().min()) / 1e9
