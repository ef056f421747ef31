"""What may be asked of an interception: the options of Istio's sidecar, names and defaults, and other meshes'.

Values are texts where Istio's are (lists separated by commas); they are checked when the record is made, all at once,
and read through properties. What Istio refuses is refused; where Istio goes on with a warning, `warnings` says it.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .conventions import ALL, ISTIO, Conventions
from .refusal import Refusal

Family = Literal["ipv4", "ipv6"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Port = int | range  # with its end, as in Python, one beyond

_GROUPS_AT_MOST = 64  # all included groups stand in one rule; Istio's limit
_LAST_MARK = 2**32 - 1  # and the last table
_RESERVED_TABLES = (253, 254, 255)  # default, main, local: a local default route there cuts the machine off
_LAST_ID = 2**32 - 2  # 2**32 - 1 is "no one"


@dataclass(frozen=True)
class Options:
    """Raises Refusal, naming every wrong key, its value and what is allowed."""

    conventions: str = ISTIO.name  # whose ports and chains; the other defaults here are Istio's, see `of`
    proxy_port: int = ISTIO.outbound_port  # outbound TCP goes here
    inbound_capture_port: int = ISTIO.inbound_port  # inbound TCP goes here
    inbound_tunnel_port: int = ISTIO.tunnel_port  # never captured inbound: HBONE
    proxy_uid: str = str(ISTIO.uid)  # whose packets are never captured; several: "3,4"
    proxy_gid: str = ISTIO.gid
    inbound_interception_mode: str = "REDIRECT"
    inbound_tproxy_mark: str = str(ISTIO.mark)
    inbound_tproxy_route_table: str = str(ISTIO.route_table)
    inbound_ports_include: str = ""  # none; "*": all; or a list
    inbound_ports_exclude: str = ""
    inbound_ip_ranges_exclude: str = ""  # of who calls; CIDRs of both families
    outbound_ports_include: str = ""  # captured although their address is not
    outbound_ports_exclude: str = ""
    outbound_ip_ranges_include: str = ""  # none; "*": all; or CIDRs of both families
    outbound_ip_ranges_exclude: str = ""
    reroute_virtual_interfaces: str = ""  # what comes from them is treated as outbound
    exclude_interfaces: str = ""
    owner_groups_include: str = "*"  # whose outbound packets are captured; numbers or names
    owner_groups_exclude: str = ""
    host_ipv4_loopback_cidr: str = "127.0.0.1/32"
    redirect_dns: bool = False
    dns_port: int = ISTIO.dns_port  # redirected DNS goes here; always the same in Istio
    capture_all_dns: bool = False  # any server, not only those listed
    dns_servers_v4: tuple[str, ...] = ()
    dns_servers_v6: tuple[str, ...] = ()
    drop_invalid: bool = False
    enable_ipv6: bool = False

    def __post_init__(self) -> None:
        found = list(_problems(dataclasses.asdict(self)))
        if found:
            raise Refusal("; ".join(found))

    @classmethod
    def of(cls, mesh: str = ISTIO.name, **given: Any) -> Options:
        """The defaults of a mesh, and what is given in the place of some. Raises Refusal."""
        return cls(**{**(ALL[mesh].options() if mesh in ALL else {"conventions": mesh}), **given})

    @property
    def mesh(self) -> Conventions:
        """The value that `conventions` names."""
        return ALL[self.conventions]

    @property
    def tproxy(self) -> bool:
        """Inbound connections keep their destination address."""
        return self.inbound_interception_mode == "TPROXY"

    @property
    def captures_dns(self) -> bool:
        """DNS is redirected; Istio switches it off, with a warning, where no server is named."""
        return self.redirect_dns and bool(self.capture_all_dns or self.dns_servers_v4 or self.dns_servers_v6)

    @property
    def uids(self) -> tuple[int, ...]:
        """Users the proxy runs as."""
        return tuple(map(int, split(self.proxy_uid)))

    @property
    def gids(self) -> tuple[int, ...]:
        """Groups the proxy runs as; in Istio the users' numbers where none is named."""
        return tuple(map(int, split(self.proxy_gid))) or (() if "proxy_gid" in self.mesh.may_be_empty else self.uids)

    def ports(self, key: str) -> tuple[Port, ...]:
        """The list under `key`; empty for none and for "*"."""
        return tuple(_port(item) for item in split(getattr(self, key)) if item != "*")

    def ranges(self, key: str, family: Family) -> tuple[Network, ...]:
        """The CIDRs of one family under `key`; Istio lets lists be mixed."""
        version = 4 if family == "ipv4" else 6
        networks = (ipaddress.ip_network(item, strict=False) for item in split(getattr(self, key)) if item != "*")
        return tuple(network for network in networks if network.version == version)

    @property
    def loopback_families(self) -> frozenset[Family]:
        """The families that have an included range written with a loopback address; if any, it is not let pass."""
        # The address as it is written decides, as in Istio: 0.0.0.0/0 covers loopback and does not count, ::1/64 does.
        items = (item for item in split(self.outbound_ip_ranges_include) if item != "*")
        addresses = (ipaddress.ip_interface(item).ip for item in items)
        return frozenset("ipv4" if one.version == 4 else "ipv6" for one in addresses if one.is_loopback)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is asked for and has no effect; Istio goes on, and so do we. For what it does wrong see `faults`."""
        return tuple(_warnings(self))


def from_json(document: object, place: str, mesh: str | None = None) -> Options:
    """The options in a JSON document over the defaults of their mesh; `place` names it in messages. Raises Refusal.

    `mesh`: the document is for this one, whether it says so or not.
    """
    if not isinstance(document, dict):
        raise Refusal(f"{place}: not a JSON object; give the options as one object of keys and values")
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in document.items()}
    if mesh and given.setdefault("conventions", mesh) != mesh:
        raise Refusal(f"{place}: conventions is {shown(given['conventions'])}, asked for are {mesh}: leave one out")
    unknown = [f"unknown key {shown(key)}" for key in given if key not in _CHECKS]
    known = {key: value for key, value in given.items() if key in _CHECKS}
    known = {**_defaults(known.get("conventions", ISTIO.name)), **known}
    found = unknown + list(_problems(known))
    if unknown:
        found.append(f"the keys are {', '.join(_CHECKS)}")
    if found:
        raise Refusal(f"{place}: " + "; ".join(found))
    return Options(**known)


def split(text: str) -> tuple[str, ...]:
    """The items of a list separated by commas, one of which may close it, as in Istio; empty for an empty text."""
    return tuple(item.strip() for item in text.removesuffix(",").split(",")) if text else ()


def _defaults(mesh: object) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(Options)}
    return defaults | (ALL[str(mesh)].options() if _is_name(mesh) else {})


def _port(text: str) -> Port:
    low, dash, high = text.partition("-")
    return range(int(low), int(high) + 1) if dash else int(low)


def _number(low: int, high: int, *but: int) -> Callable[[object], bool]:
    """Whether a text is a whole number of at most ten plain digits in [low, high]; "+1", "1_0" and "٣" are not.

    Nor is "010", which iptables and nft take for 8.
    """

    def check(value: object) -> bool:
        if not isinstance(value, str) or not re.fullmatch("0|[1-9][0-9]{0,9}", value):
            return False
        return low <= int(value) <= high and int(value) not in but

    return check


def _list_of(item: Callable[[str], bool], *, star: bool = False, empty: bool = True) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, str):
            return False
        if value == "":
            return empty
        return (star and value == "*") or all(map(item, split(value)))

    return check


def _is_port_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535


_is_port = _number(1, 65535)
_is_id = _number(0, _LAST_ID)
_is_prefix_length = _number(0, 128)


def _is_port_or_range(text: str) -> bool:
    low, dash, high = text.partition("-")
    return _is_port(low) and (not dash or (_is_port(high) and int(low) < int(high)))


def _is_group(text: str) -> bool:
    return _is_id(text) or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", text) is not None


def _is_interface(text: str) -> bool:
    """A name the kernel takes (at most 15 bytes); a closing "+" means any that begins so, as in iptables."""
    named = re.fullmatch(r"[A-Za-z0-9_.@:-]{1,15}|[A-Za-z0-9_.@:-]{1,14}\+", text)
    return named is not None and text not in (".", "..")


def _is_cidr(text: str) -> bool:
    address, slash, length = text.partition("/")
    if not slash or not _is_prefix_length(length):
        return False
    try:
        ipaddress.ip_network(f"{address}/{int(length)}", strict=False)
    except ValueError:
        return False
    return "%" not in address


def _is_loopback_cidr(value: object) -> bool:
    if not isinstance(value, str) or not _is_cidr(value):
        return False
    network = ipaddress.ip_network(value, strict=False)
    return isinstance(network, ipaddress.IPv4Network) and network.subnet_of(ipaddress.IPv4Network("127.0.0.0/8"))


def _servers(version: int) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            return False
        try:
            return all(ipaddress.ip_address(item).version == version and "%" not in item for item in value)
        except ValueError:
            return False

    return check


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value in ALL


_PORT = (_is_port_number, "a port number from 1 to 65535")
_PORTS = (_list_of(_is_port), 'ports from 1 to 65535 separated by commas, "80,443"')
_RANGES = (_list_of(_is_port_or_range), 'ports and ranges of them separated by commas, "80,6000-8000"')
_CIDRS = (_list_of(_is_cidr), 'CIDRs separated by commas, "10.0.0.0/8" (not "*")')
_IDS = 'whole numbers from 0 separated by commas, "3,4"'
_INTERFACES = (_list_of(_is_interface), 'interface names separated by commas, "eth1,eth2"')
_YES_NO = (lambda value: isinstance(value, bool), "true or false")

# Per key: whether a value is allowed, and what is allowed, in words.
_CHECKS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "conventions": (_is_name, ", ".join(ALL)),
    "proxy_port": _PORT,
    "inbound_capture_port": _PORT,
    "inbound_tunnel_port": _PORT,
    "proxy_uid": (_list_of(_is_id, empty=False), _IDS),
    "proxy_gid": (_list_of(_is_id), _IDS),
    "inbound_interception_mode": (lambda value: value in ("REDIRECT", "TPROXY"), '"REDIRECT" or "TPROXY"'),
    "inbound_tproxy_mark": (_number(1, _LAST_MARK), 'a mark from 1 to 4294967295, in digits, as a text: "1337"'),
    "inbound_tproxy_route_table": (
        _number(1, _LAST_MARK, *_RESERVED_TABLES),
        'a routing table that is not 253, 254 or 255, as a text: "133"',
    ),
    "inbound_ports_include": (_list_of(_is_port, star=True), '"", "*" or ports separated by commas, "80,443"'),
    "inbound_ports_exclude": _PORTS,
    "inbound_ip_ranges_exclude": _CIDRS,
    "outbound_ports_include": _PORTS,
    "outbound_ports_exclude": _PORTS,
    "outbound_ip_ranges_include": (_list_of(_is_cidr, star=True), '"", "*" or CIDRs separated by commas, "10.0.0.0/8"'),
    "outbound_ip_ranges_exclude": _CIDRS,
    "reroute_virtual_interfaces": _INTERFACES,
    "exclude_interfaces": _INTERFACES,
    "owner_groups_include": (_list_of(_is_group, star=True), '"*" or groups separated by commas, "java,202"'),
    "owner_groups_exclude": (_list_of(_is_group), 'groups separated by commas, "java,202"'),
    "host_ipv4_loopback_cidr": (_is_loopback_cidr, 'a CIDR inside 127.0.0.0/8, "127.0.0.1/32"'),
    "redirect_dns": _YES_NO,
    "dns_port": _PORT,
    "capture_all_dns": _YES_NO,
    "dns_servers_v4": (_servers(4), 'a list of IPv4 addresses, ["10.96.0.10"]'),
    "dns_servers_v6": (_servers(6), 'a list of IPv6 addresses, ["fd00::10"]'),
    "drop_invalid": _YES_NO,
    "enable_ipv6": _YES_NO,
}


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong: first each value alone, and if they are right, what they are together."""
    mesh = ALL[values["conventions"]] if _is_name(values["conventions"]) else ISTIO
    defaults = _defaults(mesh.name)
    alone = []
    for key, check in _CHECKS.items():
        right, allowed = _RANGES if mesh.port_ranges and check is _PORTS else check
        value, default = values[key], defaults[key]
        same = value == default and type(value) is type(default)
        if not (same or (value == "" and key in mesh.may_be_empty) or right(value)):
            alone.append(f"{key} is {shown(value)}, allowed: {allowed}")
        elif not same and key in mesh.lacks:
            reason = f"under {mesh.title}'s conventions: its rules have no other, or no fixture of them confirms it"
            alone.append(f"{key} is {shown(value)}, allowed: {shown(default)} ({reason})")
    yield from alone
    if not alone:
        yield from _contradictions(values, mesh)


def shown(value: object) -> str:
    """A value as JSON has it, in one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if text.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _contradictions(values: Mapping[str, Any], mesh: Conventions) -> Iterator[str]:
    keys = ["proxy_port", "inbound_capture_port", "inbound_tunnel_port"]
    for index, key in enumerate(keys):
        for other in keys[:index]:
            if values[key] == values[other]:
                yield f"{key} is {values[key]}, and so is {other}: each needs a port of its own"
        if values["redirect_dns"] and values[key] == values["dns_port"]:
            yield f"{key} is {values['dns_port']}, where redirected DNS goes: choose another port"
    if values["inbound_interception_mode"] == "TPROXY" and int(values["inbound_tproxy_mark"]) == mesh.self_mark:
        taken = f'"{mesh.self_mark}", the mark of the proxy\'s calls to its own pod'
        yield f"inbound_tproxy_mark is {taken}: choose another"
    groups = split(values["owner_groups_include"])
    if len(groups) > _GROUPS_AT_MOST:
        yield f"owner_groups_include has {len(groups)} groups, allowed: {_GROUPS_AT_MOST} (one rule holds them all)"


def _warnings(options: Options) -> Iterator[str]:
    wanted = ("capture_all_dns", "dns_servers_v4", "dns_servers_v6")
    defaults = _defaults(options.conventions)
    if not options.redirect_dns and any(getattr(options, key) != defaults[key] for key in wanted):
        yield "capture_all_dns and dns_servers have no effect while redirect_dns is false"
    if options.inbound_ports_include == "" and options.tproxy:
        yield "inbound_interception_mode is TPROXY, but inbound_ports_include is empty: nothing inbound is captured"
    if options.owner_groups_include != "*" and options.owner_groups_exclude:
        yield "owner_groups_exclude has no effect beside a list in owner_groups_include"
    if options.owner_groups_include == "":
        yield "owner_groups_include is empty: nothing outbound is captured"
    if not options.enable_ipv6 and (
        options.ranges("outbound_ip_ranges_include", "ipv6") or options.ranges("outbound_ip_ranges_exclude", "ipv6")
    ):
        yield "IPv6 ranges have no effect while enable_ipv6 is false"
