"""What Istio's rules do that nobody would ask for. It is followed, and said where the options bring it about."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .conventions import ISTIO
from .options import Options
from .ruleset import FAMILIES


@dataclass(frozen=True)
class Fault:
    """One of them."""

    id: str
    what: str
    where: str  # table and chain
    brought_about: Callable[[Options], bool]  # False for what every rule set has: it is listed, not warned of

    def __str__(self) -> str:
        return f"{self.id}: {self.what} ({self.where})"


def brought_about(options: Options) -> Iterator[Fault]:
    """The faults that these options have and the defaults have not."""
    return (fault for fault in FAULTS if options.mesh is ISTIO and fault.brought_about(options))


def _excluded_server(options: Options) -> bool:
    """A server whose queries are captured stands in an excluded range."""
    families = FAMILIES if options.enable_ipv6 else FAMILIES[:1]
    excluded = [net for family in families for net in options.ranges("outbound_ip_ranges_exclude", family)]
    servers = [ipaddress.ip_address(server) for server in options.dns_servers_v4 + options.dns_servers_v6]
    if not options.captures_dns:
        return False
    return any(options.capture_all_dns or any(server in network for server in servers) for network in excluded)


def _servers_of_one_family(options: Options) -> bool:
    """A family that is on has the rules of DNS capture and no server to capture."""
    if not options.captures_dns or options.capture_all_dns:
        return False
    return not options.dns_servers_v4 or (options.enable_ipv6 and not options.dns_servers_v6)


def _loopback_of_one_family(options: Options) -> bool:
    families = options.loopback_families
    return families == {"ipv6"} or (families == {"ipv4"} and options.enable_ipv6)


def _all_of_ipv6(options: Options) -> bool:
    excluded = options.ranges("outbound_ip_ranges_exclude", "ipv6")
    return options.enable_ipv6 and any(network.prefixlen == 0 for network in excluded)


FAULTS = (
    Fault(
        "second-uid-self-call",
        'with several proxy_uid ("3,4") the loopback exemption of the first ("not uid 3") stands before the self-call '
        "rule of the second: what uid 4 sends to its own pod is returned instead of going to inbound_capture_port",
        "nat ISTIO_OUTPUT",
        lambda options: len(set(options.uids)) > 1 and not options.loopback_families,
    ),
    Fault(
        "gid-self-call-dead",
        "without DNS capture the self-call rule of proxy_gid is never reached by another uid than the proxy's: the "
        "loopback exemption of proxy_uid returns it first",
        "nat ISTIO_OUTPUT",
        lambda options: not options.captures_dns and not options.loopback_families and options.gids != options.uids,
    ),
    Fault(
        "gid-self-call-dns",
        "with DNS capture the self-call rule of proxy_gid does not spare port 53, as the one of proxy_uid does: TCP "
        "DNS of a process with the proxy's group but another uid, to a local address that is not loopback, goes to "
        "inbound_capture_port",
        "nat ISTIO_OUTPUT",
        lambda options: options.captures_dns,
    ),
    Fault(
        "inbound-exclude-ignored",
        "a list in inbound_ports_include silences inbound_ports_exclude: it has no effect",
        "nat or mangle ISTIO_INBOUND",
        lambda options: options.inbound_ports_include not in ("", "*") and bool(options.inbound_ports_exclude),
    ),
    Fault(
        "dns-capture-off-silently",
        "redirect_dns without dns_servers_v4, dns_servers_v6 and capture_all_dns captures nothing: DNS is not captured",
        "nat ISTIO_OUTPUT_DNS",
        lambda options: options.redirect_dns and not options.captures_dns,
    ),
    Fault(
        "excluded-range-dns",
        "outbound_ip_ranges_exclude stands after the DNS rules: an excluded resolver is captured nevertheless",
        "nat ISTIO_OUTPUT",
        _excluded_server,
    ),
    Fault(
        "exclude-wildcard-v6",
        'Istio refuses "*" in outbound_ip_ranges_exclude for IPv4 and does not look for it in IPv6; "*" is refused '
        "here, and ::/0, which says the same, excludes all of IPv6",
        "nat ISTIO_OUTPUT (IPv6)",
        _all_of_ipv6,
    ),
    Fault(
        "tproxy-v6-raw",
        "with DNS servers of one family only, the raw table of the other gets the zone rules of the proxy although "
        "none of its queries is redirected",
        "raw ISTIO_OUTPUT_DNS",
        _servers_of_one_family,
    ),
    Fault(
        "udp-walks-output",
        "OUTPUT jumps to ISTIO_OUTPUT for every protocol: each new UDP flow walks the whole chain for nothing",
        "nat OUTPUT",
        lambda _: False,
    ),
    Fault(
        "loopback-range-both-families",
        "a loopback range of one family in outbound_ip_ranges_include lifts the loopback exemption of both",
        "nat ISTIO_OUTPUT",
        _loopback_of_one_family,
    ),
)
