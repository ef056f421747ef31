"""What both proxies are asked: messages of every kind about one table, each kind of upstream reply, random tables."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.conformance import scripts
from tests.conformance.scripts import A, header, opt, option, record

from meshdns.dnsproxy import wire

QTYPES = {"A": wire.A, "AAAA": wire.AAAA, "CNAME": wire.CNAME, "SRV": 33, "TXT": 16, "HTTPS": 65, "ANY": 255, "NS": 2}
SEARCH = "shop.svc.cluster.local"
TABLE: dict[str, Any] = {
    "api.partner.test": {"ips": ["203.0.113.7"], "registry": "External"},
    "twice.test": {"ips": ["203.0.113.7", "203.0.113.7"], "registry": "External"},
    "mapped.test": {"ips": ["::ffff:203.0.113.8"], "registry": "External"},
    "bad.test": {"ips": ["not-an-ip"], "registry": "External"},
    "somebad.test": {"ips": ["x", "203.0.113.9"], "registry": "External"},
    "noip.test": {"ips": [], "registry": "External"},
    "UPPER.Test": {"ips": ["203.0.113.10"], "registry": "External"},
    "dotted.test.": {"ips": ["203.0.113.11"], "registry": "External"},
    "under_score.test": {"ips": ["203.0.113.12"], "registry": "External"},
    "cart.shop.svc.cluster.local": {
        "ips": ["10.96.4.4"], "registry": "Kubernetes", "namespace": "shop", "shortname": "cart",
        "alt_hosts": ["cart.shop.svc.clusterset.local", "*.cart.test", "cart.example"],
    },
    "ledger.bank.svc.cluster.local": {
        "ips": ["10.96.5.5", "2001:db8::5"], "registry": "Kubernetes", "namespace": "bank", "shortname": "ledger",
    },
    "dot.bank.svc.cluster.local.": {
        "ips": ["10.96.5.6"], "registry": "Kubernetes", "namespace": "bank", "shortname": "dot",
    },
    "odd.test": {"ips": ["10.96.5.7"], "registry": "Kubernetes", "namespace": "bank", "shortname": "odd"},
    "far.bank.svc.cluster.remote": {
        "ips": ["10.96.5.8"], "registry": "Kubernetes", "namespace": "bank", "shortname": "far",
    },
    "x.shopsvc.cluster.local": {"ips": ["10.96.5.9"], "registry": "Kubernetes", "namespace": "q", "shortname": "xq"},
    "myshop.svc.cluster.local": {"ips": ["203.0.113.13"], "registry": "External"},
    "*.wild.test": {"ips": ["203.0.113.20", "2001:db8::20"], "registry": "External"},
    "*.local": {"ips": ["203.0.113.22"], "registry": "External"},
    "in*side.test": {"ips": ["203.0.113.21"], "registry": "External"},
    "many.test": {"ips": [f"203.0.113.{n}" for n in range(1, 101)], "registry": "External"},
    "mid.test": {"ips": [f"203.0.113.{n}" for n in range(1, 29)], "registry": "External"},
    "ten.test": {"ips": [f"203.0.113.{n}" for n in range(1, 11)], "registry": "External"},
    "203.0.113.50": {"ips": ["203.0.113.50"], "registry": "External"},
    "single": {"ips": ["203.0.113.51"], "registry": "External"},
    "mesh.test": {"ips": ["203.0.113.52"], "registry": "Mesh"},
    "lower.test": {"ips": ["203.0.113.53"], "registry": "kubernetes"},
    "noreg.test": {"ips": ["203.0.113.54"]},
    ".".join(("l" * 63, "m" * 63, "n" * 63, "o" * 50, "test")): {"ips": ["203.0.113.55"], "registry": "External"},
}  # fmt: skip


CLASHES: dict[str, Any] = {  # hosts that claim one name with different addresses
    "Spelt.clash.test": {"ips": ["203.0.113.1"], "registry": "External"},
    "cart.shop": {"ips": ["203.0.113.3", "2001:db8::3"], "registry": "External"},
    "hides": {"ips": ["203.0.113.5"], "registry": "External"},
    f"hides.{SEARCH}": {"ips": ["203.0.113.6"], "registry": "External"},
    "cart.shop.svc.cluster.local": {
        "ips": ["10.96.4.4", "2001:db8::4"], "registry": "Kubernetes", "namespace": "shop", "shortname": "cart",
    },
    "spelt.clash.test": {"ips": ["203.0.113.2", "2001:db8::2"], "registry": "External"},
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One message, by UDP or TCP, and what it is in words."""

    what: str
    message: bytes
    tcp: bool = False


def query(name: str, qtype: str = "A", *, edns: int | None = None, flags: int = 0x0100, qclass: int = 1) -> bytes:
    """As a resolver would write it; `edns` is the size it offers."""
    labels = [label for label in name.rstrip(".").split(".") if label]
    question = b"".join(bytes([len(label)]) + label.encode("latin-1") for label in labels) + b"\0"
    end = b"" if edns is None else b"\0" + struct.pack(">HHIH", wire.OPT, edns, 0, 0)
    counts = header(b"\x12\x34", flags, 1, 0, 0, int(edns is not None))
    return counts + question + struct.pack(">HH", QTYPES[qtype], qclass) + end


def messages() -> Iterator[Asked]:
    """About the table above: names and types, header bits, classes, sizes, and what is hardly a query."""
    for name in _names():
        for qtype in ("A", "AAAA", "CNAME", "ANY", "TXT"):
            yield Asked(f"{name} {qtype}", query(name, qtype))
    yield from _headers()
    yield from _sizes()
    for name in ("api.partner.test", "known.upstream.test", "x.wild.test", f"api.partner.test.{SEARCH}"):
        for what, message in _odd(query(name)).items():
            for tcp in (False, True):
                yield Asked(f"{what}, {name}, {'TCP' if tcp else 'UDP'}", message, tcp)


def _names() -> list[str]:
    below = [f"{name}.{SEARCH}" for name in (
        "api.partner.test", "API.Partner.test", "x.wild.test", "*.wild.test", "cart.shop", f"cart.{SEARCH}", "single",
        "ledger.bank", "ledger.bank.svc", "x.cart.test", "cart.example", "twice.test", "many.test", "local",
        "myshop.svc.cluster.local", f"x.{SEARCH}", f"x.y.{SEARCH}", "x.local", "UPPER.test", "mapped.test", "dot.bank",
        "xq.q", "unknown.test",
    )]  # fmt: skip
    others = [
        "x.wild.test", "X.y.Wild.test", "wild.test", "cart", "cart.shop", "cart.shop.svc", "x.cart.test",
        "cart.example", "cart.shop.svc.clusterset.local", "dot.bank", "odd.bank", "odd", "far.bank", "xq.q", "xq.q.svc",
        "", "shop", "svc.cluster.local", SEARCH, "upper.test",
        "a.b.c.local", "local", "x.svc.cluster.local", "x y.test",
        "x\x80.test",
    ]  # fmt: skip
    return [*(host.rstrip(".") for host in TABLE), *below, *others]


def _headers() -> Iterator[Asked]:
    bits = {"none": 0, "RD": 0x0100, "CD": 0x0110, "AD": 0x0120, "Z": 0x0140, "TC": 0x0300, "AA": 0x0500, "RA": 0x0180,
            "response": 0x8100, "rcode 5": 0x0105}  # fmt: skip
    bits |= {f"opcode {n}": n << 11 | 0x0100 for n in range(1, 16)}
    bits |= {"opcode 2, AD and TC": 0x1220, "opcode 5, RA": 0x2980, "NOTIFY, AD": 0x2120}
    for name in ("api.partner.test", "known.upstream.test"):
        for what, flags in bits.items():
            for tcp in (False, True):
                yield Asked(f"{what}, {name}, {'TCP' if tcp else 'UDP'}", query(name, flags=flags), tcp)
        for qclass in (0, 2, 3, 4, 254, 255):
            for qtype in ("A", "AAAA", "TXT"):
                yield Asked(f"class {qclass}, {name} {qtype}", query(name, qtype, qclass=qclass))


def _sizes() -> Iterator[Asked]:
    for name in ("api.partner.test", "ten.test", "mid.test", "many.test", f"ten.test.{SEARCH}", "known.upstream.test",
                 "fits.upstream.test", "large.upstream.test", "opt.upstream.test"):  # fmt: skip
        for edns in (None, 0, 1, 511, 512, 513, 700, 1232, 4096, 65_535):
            yield Asked(f"{name}, EDNS {edns}", query(name, edns=edns))
        yield Asked(f"{name}, TCP", query(name), True)


def _odd(plain: bytes) -> dict[str, bytes]:
    """Variations on a query for an address."""
    head, question = plain[:12], plain[12:]
    name, kind = question[:-4], question[-4:]
    long = b"".join(b"\x3f" + bytes([c]) * 63 for c in b"abc")
    one = head[:10] + b"\0\1" + question  # an additional record follows
    with_options = {
        "cookie": option(10, b"abcdefgh"), "NSID": option(3, b""), "subnet": option(8, b"\0\1\x18\0\1\2\3"),
        "subnet of one byte": option(8, b"\0"), "subnet of 40 bits": option(8, b"\0\1\x28\0\1\2\3\4\5"),
        "subnet 6": option(8, b"\0\2\x20\0\x20\1\x0d\xb8"), "subnet of no family": option(8, b"\0\0\0\0"),
        "subnet of family 7": option(8, b"\0\7\0\0"), "padding": option(12, b"\0" * 4), "keepalive": option(11, b""),
        "keepalive of one byte": option(11, b"\0"), "expire": option(9, b""), "expire of two bytes": option(9, b"\0\1"),
        "lease": option(2, b"\0\0\0\1"), "lease of five bytes": option(2, b"\0\0\0\0\1"),
        "error of a byte": option(15, b"\0"), "error": option(15, b"\0\1"),
        "unknown option": option(65_001, b"abc"), "zone version": option(19, b"\0"),
        "long-lived query": option(1, b"\0" * 18), "long-lived query, short": option(1, b"\0" * 17),
        "option beyond its record": b"\0\x0a\0\x50ab", "half an option": b"\0\x0a",
    }  # fmt: skip
    return {
        **{what: one + opt(data) for what, data in with_options.items()},
        **{f"EDNS version {n}": one + opt(ttl=n << 16) for n in (1, 255)},
        "DO": one + opt(ttl=0x8000), "extended rcode": one + opt(ttl=1 << 24),
        "OPT with an owner": one + b"\1x" + opt(),
        "two OPT": head[:10] + b"\0\2" + question + opt() * 2, "three OPT": head[:10] + b"\0\3" + question + opt() * 3,
        "three additional": head[:10] + b"\0\3" + question + A * 3,
        "two additional": head[:10] + b"\0\2" + question + A * 2,
        "an answer": head[:6] + b"\0\1" + head[8:] + question + A,
        "two answers": head[:6] + b"\0\2" + head[8:] + question + A * 2,
        "an authority": head[:8] + b"\0\1" + head[10:] + question + A,
        "two authorities": head[:8] + b"\0\2" + head[10:] + question + A * 2,
        "an answer without data": head[:6] + b"\0\1" + head[8:] + question + record(wire.A, b""),
        "an answer of three bytes": head[:6] + b"\0\1" + head[8:] + question + record(wire.A, b"abc"),
        "an answer with a pointer forward": head[:6] + b"\0\1" + head[8:] + question
        + record(wire.A, b"\1\2\3\4", owner=struct.pack(">H", 0xC000 | (len(plain) + 16))) + b"\1a\0",
        "what follows": plain + b"\0\1\2", "a record follows": plain + A,
        "an answer promised": head[:6] + b"\0\1" + head[8:] + question,
        "an additional promised": one, "two additional promised, one there": head[:10] + b"\0\2" + question + opt(),
        "half an OPT": (one + opt())[:-3], "an answer cut": head[:6] + b"\0\1" + head[8:] + question + A[:-1],
        "two questions": head[:4] + b"\0\2" + head[6:] + question * 2,
        "two promised, one there": head[:4] + b"\0\2" + head[6:] + question,
        "no question": head[:4] + b"\0\0" + head[6:],
        "no question promised, one there": head[:4] + b"\0\0" + question + head[6:],
        "no class": plain[:-2], "no type": plain[:-4], "half a class": plain[:-1], "half a type": plain[:-3],
        "half a name": plain[:17], "header": head, "header, nothing promised": head[:4] + b"\0" * 8,
        "a loop": head + b"\xc0\x0c" + kind, "a pointer into the header": head + b"\xc0\x02" + kind,
        "a pointer forward": head + b"\xc0\x12" + kind + name,
        "a label of 64": head + b"\x40" + b"a" * 64 + b"\0" + kind, "a label of an old kind": head + b"\x41\1\0" + kind,
        "a name of 255": head + long + b"\x3d" + b"d" * 61 + b"\0" + kind,
        "a name of 256": head + long + b"\x3e" + b"d" * 62 + b"\0" + kind,
        "eleven bytes": head[:11], "a byte": head[:1], "nothing": b"",
    }  # fmt: skip


def upstream_replies() -> Iterator[Asked]:
    """Each kind of reply, said once and for all or followed by a good one, with and without EDNS, by UDP and TCP."""
    for kind in scripts.KINDS:
        for then in ("", f"-{scripts.NEXT}"):
            for edns in (None, 1232):
                for tcp in (False, True):
                    name = f"{kind}{then or '-'}{'t' if tcp else 'u'}{'e' if edns else 'p'}.upstream.test"
                    what = f"{kind}{', then a good one' if then else ''}, EDNS {edns}, {'TCP' if tcp else 'UDP'}"
                    yield Asked(what, query(name, edns=edns), tcp)


class Tables:
    """Random name tables, as Istio's control plane makes them or with `wild` as it does not, and what is asked."""

    def __init__(self, seed: str, *, wild: bool = False) -> None:
        self._dice = random.Random(seed)
        self._wild = wild
        self._labels = ["a", "b", "shop", "bank", "svc", "cluster", "local", "test", *(["*", "A"] if wild else [])]

    def table(self) -> dict[str, Any]:
        """One to fourteen hosts that often clash."""
        dice, made = self._dice, {}
        for _ in range(dice.randint(1, 14)):
            ips = [dice.choice(["10.0.0.1", "10.0.0.2", "10.9.9.9", "2001:db8::1", "2001:db8::2", "bad"])
                   for _ in range(dice.randint(0, 3))]  # fmt: skip
            host, entry = self._service() if dice.random() < 0.5 else self._external()
            if self._wild and dice.random() < 0.05:
                host += "."
            made[host] = {"ips": ips, **entry}
        return made

    def _service(self) -> tuple[str, dict[str, Any]]:
        dice = self._dice
        short, space = dice.choice(["a", "b", "shop", "a.b"]), dice.choice(["shop", "bank", "svc"])
        domain = dice.choice(["cluster.local", "cluster.local", "other.local", "local"])
        entry: dict[str, Any] = {"registry": "Kubernetes", "namespace": space, "shortname": short}
        if dice.random() < 0.2:
            entry["alt_hosts"] = [self.name(3) for _ in range(dice.randint(1, 2))]
        return f"{short}.{space}.svc.{domain}", entry

    def _external(self) -> tuple[str, dict[str, Any]]:
        dice = self._dice
        host = self.name() if dice.random() < 0.6 else f"*.{self.name(3)}"
        if dice.random() < 0.2:
            host += f".{dice.choice([SEARCH, 'svc.cluster.local'])}"
        return host, {"registry": "External"}

    def name(self, most: int = 5) -> str:
        """A host name out of few labels."""
        return ".".join(self._dice.choice(self._labels) for _ in range(self._dice.randint(1, most)))

    def questions(self, table: Mapping[str, Any], count: int) -> list[Asked]:
        """So many about a table, no two alike but for case."""
        dice, hosts = self._dice, list(table)
        found: dict[bytes, Asked] = {}
        for _ in range(20 * count):
            if len(found) == count:
                break
            host = self._asked(dice.choice(hosts)) if dice.random() < 0.5 else self.name()
            if dice.random() < 0.4:
                host += f".{dice.choice([SEARCH, SEARCH, 'svc.cluster.local', 'shop', 'shop.svc'])}"
            if dice.random() < 0.1:
                host = host.upper()
            qtype = dice.choice(["A", "A", "AAAA", "SRV"])
            if len(host) < 240:
                message = query(host, qtype, edns=dice.choice([None, None, 1232]))
                found.setdefault(query(host.lower(), qtype), Asked(f"{host} {qtype}", message))
        return list(found.values())

    def _asked(self, host: str) -> str:
        return host.rstrip(".").replace("*", self._dice.choice(["x", "x.y", "*", "a"]))
