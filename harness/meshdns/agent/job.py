"""What a driver may ask of the agent, checked before anything is sent."""

from __future__ import annotations

import ipaddress
import math
import random
import ssl
from array import array
from dataclasses import dataclass
from typing import Any

from . import dnswire, tcpwire

FAMILIES = {"inet": 2, "inet6": 10, "unspec": 0}  # AF_INET, AF_INET6, AF_UNSPEC on Linux
MAX_COUNT = 10_000_000  # 13 columns of ten million rows are 0.8 GB; more is a mistake in the plan


class JobError(ValueError):
    """The job cannot be run; the text names the field and what it may be."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How the server is verified."""

    server_name: str
    cafile: str

    def context(self) -> ssl.SSLContext:
        """What verifies it so."""
        try:
            return ssl.create_default_context(cafile=self.cafile)
        except OSError as error:  # SSLError is an OSError
            raise JobError(f"tls.cafile: {error}") from error


@dataclass(frozen=True, slots=True)
class Tcp:
    """An exchange with a server that does not speak HTTP."""

    payload: bytes
    answers: tcpwire.Answers


@dataclass(frozen=True, slots=True)
class Job:
    """One load, as asked."""

    kind: str  # "lookup" or "request"
    lookup: str  # "none", "wire" or "getaddrinfo"
    wire: tuple[tuple[dnswire.Query, ...], ...]  # candidates in search-list order, each one or two parallel queries
    accept_nodata: bool  # an empty NOERROR ends the lookup well
    accept_nxdomain: bool  # NXDOMAIN for the last candidate is the answer that was expected
    resolver: tuple[str, int]
    name: bytes
    family: int
    address: str
    port: int
    request: bytes
    tcp: Tcp | None  # instead of an HTTP request
    tls: Tls | None
    keepalive: bool  # connections are reused; of a lookup: its UDP socket
    process: str  # "closed", "constant" or "poisson"
    rate_hz: float
    seed: int
    concurrency: int  # closed: workers; open: cap on requests in flight
    count: int
    warmup: int
    timeout_ns: int
    limit_ns: int  # nothing starts later than this after the first due time
    spin: bool

    def dues(self) -> array[int] | None:
        """Due times in nanoseconds after the start, or None for a closed loop."""
        if self.process == "closed":
            return None
        if self.process == "constant":
            return array("q", (round(k * 1e9 / self.rate_hz) for k in range(self.count)))
        chance = random.Random(self.seed)  # noqa: S311 - a repeatable arrival process, not a secret
        at, dues = 0.0, array("q", bytes(8 * self.count))
        for k in range(self.count):
            at += chance.expovariate(self.rate_hz)
            dues[k] = round(at * 1e9)
        return dues


def read(fields: dict[str, Any]) -> Job:
    """The job in decoded JSON; unknown fields and impossible values raise JobError."""
    fields = dict(fields)
    arrival = fields.pop("arrival", {"process": "closed"})
    if not isinstance(arrival, dict):
        raise JobError("arrival: must be an object")
    arrival = dict(arrival)
    connection = _choice(fields, "connection", ("new", "keepalive"), "new")
    wait = _choice(fields, "wait", ("spin", "block"), "spin")
    resolver = fields.pop("resolver", None) or ["", 0]
    if not isinstance(resolver, list) or len(resolver) != 2:
        raise JobError("resolver: must be [address, port]")
    job = Job(
        kind=_choice(fields, "kind", ("lookup", "request"), ""),
        lookup=_choice(fields, "lookup", ("none", "wire", "getaddrinfo"), "none"),
        wire=_wire(fields.pop("wire", None) or []),
        accept_nodata=fields.pop("accept_nodata", False) is True,
        accept_nxdomain=fields.pop("accept_nxdomain", False) is True,
        resolver=(_address(resolver[0], "resolver"), int(_number({"resolver": resolver[1]}, "resolver", 0, 65535, 0))),
        name=_text(fields, "name", "ascii"),
        family=FAMILIES[_choice(fields, "family", tuple(FAMILIES), "unspec")],
        address=_address(fields.pop("address", None), "address"),
        port=int(_number(fields, "port", 0, 65535, 0)),
        request=_text(fields, "request", "latin-1"),
        tcp=_tcp(fields.pop("tcp", None)),
        tls=_tls(fields.pop("tls", None)),
        keepalive=connection == "keepalive",
        process=_choice(arrival, "process", ("closed", "constant", "poisson"), "closed"),
        rate_hz=_number(arrival, "rate_hz", 0, 1e6, 0),
        seed=int(_number(arrival, "seed", 0, 2**63, 0)),
        concurrency=int(_number(arrival, "concurrency", 1, 4096, 1)),
        count=int(_number(fields, "count", 1, MAX_COUNT, None)),
        warmup=int(_number(fields, "warmup", 0, MAX_COUNT, 0)),
        timeout_ns=round(_number(fields, "timeout_ms", 1, 3_600_000, 5000) * 1e6),
        limit_ns=round(_number(fields, "duration_limit_s", 0, 86_400, 3600) * 1e9),
        spin=wait == "spin",
    )
    if fields or arrival:
        raise JobError(f"unknown field: {', '.join(sorted([*fields, *arrival]))}")
    _agree(job)
    return job


def _agree(job: Job) -> None:
    """Refuses fields that contradict each other."""
    checks = (
        (job.kind == "lookup" and job.lookup == "none", "lookup: a lookup needs wire or getaddrinfo"),
        (job.lookup == "wire" and not job.wire, "wire: needs at least one candidate"),
        (job.lookup == "wire" and not (job.resolver[0] and job.resolver[1]), "resolver: needs an address and a port"),
        (job.lookup == "getaddrinfo" and not job.name, "name: getaddrinfo needs a name"),
        (
            job.lookup == "getaddrinfo" and (job.process != "closed" or job.concurrency != 1),
            "lookup: getaddrinfo blocks the process, so it is only for a closed loop with concurrency 1",
        ),
        (job.kind == "request" and job.lookup == "none" and not job.address, "address: needed without a lookup"),
        (job.kind == "request" and not job.port, "port: a request needs one"),
        (
            job.kind == "request" and job.tcp is None and b"\r\n\r\n" not in job.request,
            "request: must hold a whole HTTP request head",
        ),
        (job.tcp is not None and job.kind != "request", "tcp: is only for kind request"),
        (job.tcp is not None and bool(job.request), "tcp: stands instead of request, not beside it"),
        (job.tcp is not None and job.keepalive, "connection: tcp needs new, since the end of an answer is not known"),
        (job.process != "closed" and job.rate_hz <= 0, "arrival.rate_hz: an open loop needs a rate above 0"),
    )
    for wrong, text in checks:
        if wrong:
            raise JobError(text)


def _choice(fields: dict[str, Any], key: str, allowed: tuple[str, ...], default: str) -> str:
    value = fields.pop(key, default)
    if value not in allowed:
        raise JobError(f"{key}: {value!r} is not one of {', '.join(allowed)}")
    return str(value)


def _number(fields: dict[str, Any], key: str, low: float, high: float, default: float | None) -> float:
    value = fields.pop(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise JobError(f"{key}: must be a number")
    if not low <= value <= high:
        raise JobError(f"{key}: {value} is not between {low} and {high}")
    return value


def _address(value: object, key: str) -> str:
    """An IP address or nothing; a name would be looked up inside the timed path."""
    try:
        return str(ipaddress.ip_address(str(value))) if value else ""
    except ValueError as error:
        raise JobError(f"{key}: {error}") from error


def _text(fields: dict[str, Any], key: str, encoding: str) -> bytes:
    value = fields.pop(key, None) or ""
    try:
        return str(value).encode(encoding)
    except UnicodeEncodeError as error:
        raise JobError(f"{key}: cannot be written as {encoding}") from error


def _tls(value: object) -> Tls | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"server_name", "cafile"}:
        raise JobError("tls: must hold server_name and cafile")
    return Tls(str(value["server_name"]), str(value["cafile"]))


def _tcp(value: object) -> Tcp | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"payload", "answers"}:
        raise JobError("tcp: must hold payload and answers")
    answers = value["answers"]
    if not isinstance(answers, dict) or not answers or not all(server and texts for server, texts in answers.items()):
        raise JobError("tcp.answers: must hold servers, each with what its answers begin with")
    try:
        prefixes = {str(server): [bytes.fromhex(text) for text in texts] for server, texts in answers.items()}
        return Tcp(bytes.fromhex(value["payload"]), tcpwire.Answers(prefixes))
    except (TypeError, ValueError, tcpwire.AmbiguousError) as error:
        raise JobError(f"tcp: {error}") from error


def _wire(candidates: object) -> tuple[tuple[dnswire.Query, ...], ...]:
    if not isinstance(candidates, list):
        raise JobError("wire: must be a list of candidates")
    read_candidates = []
    for place, candidate in enumerate(candidates):
        if not isinstance(candidate, list) or len(candidate) not in (1, 2):
            raise JobError(f"wire[{place}]: must be a list of one or two queries")
        try:
            read_candidates.append(tuple(dnswire.Query(bytes.fromhex(text)) for text in candidate))
        except (TypeError, ValueError, dnswire.MalformedError) as error:
            raise JobError(f"wire[{place}]: {error}") from error
    return tuple(read_candidates)
