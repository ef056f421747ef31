"""Istio's agent and this project's DNS proxy, asked the same: what differs, and whether `--differences` says so.

Runs as a program in network and mount namespaces of its own, as root: `unshare --net --mount`. Prints JSON.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance import asking, neighbours, proxies, questions, scripts, servers
from tests.conformance.questions import Asked

from meshdns.dnsproxy import conformance, differences, wire
from meshdns.dnsproxy.differences import Difference, Whole
from meshdns.dnsproxy.situations import Seen, Situation, Surroundings, see

WAIT_S = len(servers.ADDRESSES) * proxies.TIMEOUT_S + 0.5
LATE_S = 0.6 * proxies.TIMEOUT_S  # a server was waited for
AGAIN = 2  # times that a disagreement without a reason is asked again: a busy machine loses and delays
PER_TABLE = 200
MOST_SHOWN = 40
SEED = 17
PUSHES = 80  # at most: after so many, each of two hosts has had a name once


@dataclass
class Outcome:
    """What was found."""

    asked: int = 0
    alike: int = 0
    again: int = 0  # asked a second or third time, for want of a reason
    explained: collections.Counter[str] = field(default_factory=collections.Counter)  # by difference
    unexplained: list[dict[str, str]] = field(default_factory=list)
    overstated: list[dict[str, str]] = field(default_factory=list)  # both alike, and a difference says they are not
    near: collections.Counter[str] = field(default_factory=collections.Counter)  # neighbours that are told apart
    mistaken: list[str] = field(default_factory=list)  # neighbours that a difference takes for its own
    refuted: list[str] = field(default_factory=list)  # conformance cases of which the agent does something else
    cases: int = 0
    killed: list[str] = field(default_factory=list)  # how the agent was started where SIGTERM did not end it
    parts: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**vars(self), "explained": dict(sorted(self.explained.items())), "near": dict(self.near)}


@dataclass(frozen=True)
class Judged:
    """A situation, and what two proxies made of it."""

    left: tuple[Seen, Seen]  # after all differences that apply were taken away
    used: tuple[str, ...]  # those that took something away
    idle: tuple[str, ...]  # those that apply and did not

    @property
    def agrees(self) -> bool:
        """Whether nothing is left."""
        return self.left[0] == self.left[1]


def judge(x: Situation, agent: Seen, ours: Seen) -> Judged:
    """Takes away each difference in whose situations this is one; those of whole answers from what is left then."""
    showing = [difference for difference in differences.DIFFERENCES if difference.where(x)]
    whole = [difference for difference in showing if isinstance(difference.level, Whole)]
    left, used, idle = _level([each for each in showing if each not in whole], x, (agent, ours))
    if left[0] == left[1]:
        return Judged(left, tuple(used), tuple(idle + [each.id for each in whole if not each.chance]))
    left, used_whole, idle_whole = _level(whole, x, left)
    return Judged(left, tuple(used + used_whole), tuple(idle_whole if used_whole else idle))


def _level(
    showing: Sequence[Difference], x: Situation, seen: tuple[Seen, Seen]
) -> tuple[tuple[Seen, Seen], list[str], list[str]]:
    """What is left, and the ids of those that took something away and of those that did not and should."""
    used, idle = [], []
    for difference in showing:
        changed = difference.level(x, *seen)
        if _closer(changed, seen):
            used.append(difference.id)
        elif not difference.chance and seen[0] != seen[1]:
            idle.append(difference.id)
        seen = changed
    return seen, used, idle


def _closer(after: tuple[Seen, Seen], before: tuple[Seen, Seen]) -> bool:
    """Whether something in which they differed is gone."""
    names = [one.name for one in dataclasses.fields(Seen)]
    return any(
        getattr(before[0], name) != getattr(before[1], name) and
        (getattr(after[0], name), getattr(after[1], name)) != (getattr(before[0], name), getattr(before[1], name))
        for name in names
    )  # fmt: skip


class Bench:
    """Both proxies, the servers behind them, and what was found so far."""

    def __init__(self, binary: Path, seed: int) -> None:
        self.binary, self.seed = binary, seed
        self.servers = servers.Servers()
        self.outcome = Outcome()

    def compare(self, pair: proxies.Pair, around: Surroundings, asked: Sequence[Asked], part: str) -> None:
        """Puts the messages to both; each about another name, so that it is known who heard what."""
        found = self._put(pair, around, asked)
        for one, (x, agent, ours) in zip(asked, found, strict=True):
            judged = judge(x, agent, ours)
            for _ in range(AGAIN):
                if judged.agrees and not judged.idle:
                    break
                (again,) = self._put(pair, around, [one])
                judged = judge(*again)
                self.outcome.again += 1
            self._note(part, one, x, (agent, ours), judged)

    def one_by_one(self, pair: proxies.Pair, around: Surroundings, asked: Sequence[Asked], part: str) -> None:
        """The same for messages that may be about the same name."""
        for one in asked:
            self.compare(pair, around, [one], part)

    def _put(
        self, pair: proxies.Pair, around: Surroundings, asked: Sequence[Asked]
    ) -> list[tuple[Situation, Seen, Seen]]:
        sent = [(one.message, one.tcp) for one in asked]
        seen = [self._seen(server, sent) for server in (pair.agent, pair.own)]
        said = [scripts.said(message, self.servers.more) if len(message) > wire.HEADER else () for message, _ in sent]
        made = [Situation(message, tcp, around, replies) for (message, tcp), replies in zip(sent, said, strict=True)]
        return list(zip(made, *seen, strict=True))

    def _seen(self, server: tuple[str, int], sent: Sequence[tuple[bytes, bool]]) -> list[Seen]:
        self.servers.forget()
        wait_s = WAIT_S if any(len(m) > wire.HEADER and not m[2] & 0x80 for m, _ in sent) else 0.15
        exchanges = asking.ask(server, sent, wait_s)
        heard = self.servers.heard
        return [
            see(e.reply, closed=e.closed, late=e.took_s > LATE_S, forwarded=_forwarded(e, heard, len(sent) == 1))
            for e in exchanges
        ]

    def _note(self, part: str, one: Asked, x: Situation, seen: tuple[Seen, Seen], judged: Judged) -> None:
        outcome = self.outcome
        outcome.asked += 1
        outcome.alike += seen[0] == seen[1]
        outcome.parts[part] = outcome.parts.get(part, 0) + 1
        outcome.explained.update(judged.used)
        told = {
            "part": part, "what": one.what, "message": one.message.hex(), "tcp": str(one.tcp),
            "table": json.dumps(x.around.table) if len(x.around.table) < 20 else "",
        }  # fmt: skip
        if not judged.agrees:
            used = ", ".join(judged.used)
            outcome.unexplained.append({**told, "agent": str(seen[0]), "ours": str(seen[1]), "taken away": used,
                                        "left": _left(*judged.left)})  # fmt: skip
        elif judged.idle:
            outcome.overstated.append({**told, "differences": ", ".join(judged.idle), "agent": str(seen[0]),
                                       "ours": str(seen[1])})  # fmt: skip


def _left(agent: Seen, ours: Seen) -> str:
    names = [one.name for one in dataclasses.fields(Seen)]
    return ", ".join(
        f"{name}: {getattr(agent, name)!r} and {getattr(ours, name)!r}"
        for name in names
        if getattr(agent, name) != getattr(ours, name)
    )


def _forwarded(one: asking.Exchange, heard: list[servers.Heard], alone: bool) -> tuple[tuple[bool, bytes], ...]:
    """What the servers heard of this message."""
    if alone:
        return tuple((tcp, query[2:]) for tcp, query in heard)
    about = one.message[12 : wire.skip_name(one.message, 12) + 4].lower()
    return tuple(
        (tcp, query[2:]) for tcp, query in heard if tcp == one.tcp and query[12 : 12 + len(about)].lower() == about
    )


def run(
    binary: Path, tables: int, announce: Callable[[str], None], *, seed: int = SEED, parts: Sequence[str] = ()
) -> Outcome:
    """Everything, once."""
    bench = Bench(binary, seed)
    begun_s = time.monotonic()
    with proxies.running(binary, proxies.Setup(), questions.TABLE) as pair:
        around = Surroundings(pair.put(questions.TABLE), proxies.SCOPE, servers=len(servers.ADDRESSES))
        for part, work in _parts(bench, pair, around, tables):
            if not parts or part in parts:
                announce(f"{time.monotonic() - begun_s:5.1f} s: {part}")
                work()
    bench.outcome.took_s = round(time.monotonic() - begun_s, 1)
    return bench.outcome


def _parts(
    bench: Bench, pair: proxies.Pair, around: Surroundings, tables: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    yield "messages", lambda: bench.one_by_one(pair, around, list(questions.messages()), "messages")
    yield "upstream", lambda: bench.compare(pair, around, list(questions.upstream_replies()), "upstream")
    yield "cases", lambda: _cases(bench, pair)
    yield "neighbours", lambda: _neighbours(bench, pair)
    yield "settings", lambda: _settings(bench)
    yield "clashes", lambda: _clashes(bench, pair)
    yield "tables", lambda: _random_tables(bench, pair, tables, wild=False)
    yield "wild tables", lambda: _random_tables(bench, pair, tables // 10, wild=True)


def _cases(bench: Bench, pair: proxies.Pair) -> None:
    """The conformance cases, whose expectations are the agent's."""
    where = conformance.World(upstream=f"{servers.ADDRESSES[0]}:{servers.PORT}")
    pair.put(where.name_table()["table"])
    rows = conformance.run("{}:{}".format(*pair.agent), where)
    bench.outcome.cases = len(rows)
    bench.outcome.refuted = [
        f"{row.id}: {row.expected!r} is stated, {row.observed!r} was seen" for row in rows if not row.agrees
    ]


def _neighbours(bench: Bench, pair: proxies.Pair) -> None:
    """What is near a difference and not one of its situations."""
    around = Surroundings(pair.put(neighbours.table()), proxies.SCOPE, servers=len(servers.ADDRESSES))
    where = {difference.id: difference.where for difference in differences.DIFFERENCES}
    together, alone = [], []
    for name, asked, reply in neighbours.messages():
        if reply:
            bench.servers.more[neighbours.label(asked)] = reply
        (together if reply else alone).append(asked)
        replies = scripts.said(asked.message, bench.servers.more) if len(asked.message) > wire.HEADER else ()
        if where[name](Situation(asked.message, asked.tcp, around, replies)):
            bench.outcome.mistaken.append(asked.what)
        else:
            bench.outcome.near[name] += 1
    bench.compare(pair, around, together, "neighbours")
    bench.one_by_one(pair, around, alone, "neighbours")


def _settings(bench: Bench) -> None:
    """Both started otherwise: without servers, without a table, the agent on port 53; and near that."""
    one, port_53 = servers.ADDRESSES[:1], {"listen": "127.0.0.3", "port": 53}
    variants = [
        ("", proxies.Setup((), parallel=True), 3),
        ("no-servers", proxies.Setup(()), neighbours.COUNT),
        ("no-servers", proxies.Setup(one, parallel=True), neighbours.COUNT),
        ("", proxies.Setup(one, told=False, **port_53), neighbours.COUNT),
        ("untold", proxies.Setup(one, told=False), neighbours.COUNT),
        ("untold", proxies.Setup(one, **port_53), neighbours.COUNT),
    ]
    where = {difference.id: difference.where for difference in differences.DIFFERENCES}
    for near, setup, count in variants:
        around = Surroundings(
            questions.TABLE, proxies.SCOPE, len(setup.servers), setup.parallel, told=setup.told, port=setup.port
        )
        asked = [Asked(f"{setup}: {n}", questions.query(f"known-set{n}.upstream.test")) for n in range(count)]
        with proxies.running(bench.binary, setup, questions.TABLE) as pair:
            bench.compare(pair, around, asked, "settings")
        if pair.process and pair.process.returncode == -signal.SIGKILL:
            bench.outcome.killed.append(str(setup))
        for one_of in asked if near else ():
            mistaken = where[near](Situation(one_of.message, False, around, scripts.said(one_of.message, {})))
            bench.outcome.mistaken += [one_of.what] * mistaken
            bench.outcome.near[near] += not mistaken


def _clashes(bench: Bench, pair: proxies.Pair) -> None:
    """Hosts that claim one name: which of them has it is chance, so the table is pushed again until it has shown."""
    chance = {difference.id for difference in differences.DIFFERENCES if difference.chance}
    for _ in range(PUSHES):
        if chance <= set(bench.outcome.explained):
            break
        around = Surroundings(pair.put(questions.CLASHES), proxies.SCOPE, servers=len(servers.ADDRESSES))
        names = [*questions.CLASHES, "cart", "cart.shop", "cart.shop.svc"]
        asked = [
            Asked(f"{name} {qtype}", questions.query(name.lower(), qtype)) for name in names for qtype in ("A", "AAAA")
        ]
        bench.one_by_one(pair, around, asked, "clashes")


def _random_tables(bench: Bench, pair: proxies.Pair, count: int, *, wild: bool) -> None:
    source = questions.Tables(f"{bench.seed} {wild}", wild=wild)
    for _ in range(count):
        table = source.table()
        around = Surroundings(pair.put(table), proxies.SCOPE, servers=len(servers.ADDRESSES))
        bench.compare(pair, around, source.questions(table, PER_TABLE), "wild tables" if wild else "tables")


def main() -> int:
    """Prints what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--agent", type=Path, required=True)
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED, help="of the random tables")
    parser.add_argument("--part", action="append", default=[], help="these alone")
    parser.add_argument(
        "--forget", default="", help="a difference that is taken from the list: what it explained shows"
    )
    options = parser.parse_args()
    differences.DIFFERENCES = tuple(d for d in differences.DIFFERENCES if d.id != options.forget)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    outcome = run(
        options.agent,
        options.tables,
        lambda line: print(line, file=sys.stderr, flush=True),
        seed=options.seed,
        parts=options.part,
    )
    json.dump(outcome.as_json(), sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
