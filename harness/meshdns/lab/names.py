"""What a stub resolver asks for a name: the search list, as messages ready to send (resolv.conf(5), RFC 1035)."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rdatatype

from meshdns.dnsproxy import conformance
from meshdns.lab import topology


def conformance_world(nets: topology.Nets) -> conformance.World:
    """The names that the conformance suite asks for; mode 2's DNS proxies know them beside the services."""
    return conformance.World(
        namespace=topology.NAMESPACE,
        domain=topology.DOMAIN,
        search=topology.SEARCH,
        external=conformance.Host("paid.example.com", ("240.240.0.200",)),
        upstream=f"{nets.pod(topology.DNS_HOST)}:{topology.PORT_DNS_DIRECT}",
        upstream_name=topology.EXTERNAL_NAME,
        absent_name="absent.example.com",
    )


def application_name(name_kind: str, service: topology.Service) -> str:
    """The name as an application would spell it.

    `fqdn` carries the final dot, so that no search list applies; `external` and `absent` do not, as nobody writes one.
    """
    return {
        "fqdn": f"{service.fqdn}.",
        "short": service.name,
        "external": topology.EXTERNAL_NAME,
        "absent": topology.ABSENT_NAME,
    }[name_kind]


def candidates(name: str, ndots: int, search: tuple[str, ...] = topology.SEARCH) -> list[str]:
    """The names that glibc's resolver tries, in order, each with its final dot (resolv.conf(5), `ndots`)."""
    if name.endswith("."):
        return [name]
    expanded = [f"{name}.{domain}." for domain in search]
    as_is = f"{name}."
    return [as_is, *expanded] if name.count(".") >= ndots else [*expanded, as_is]


def question(name: str, qtype: str) -> bytes:
    """A recursive query in wire form with id 0; the agent writes the id."""
    message = dns.message.make_query(dns.name.from_text(name), dns.rdatatype.from_text(qtype), use_edns=False)
    message.id = 0
    message.flags = dns.flags.Flag.RD
    return message.to_wire()


def wire(name: str, qtype: str, ndots: int) -> list[list[str]]:
    """Candidates in search order, each a list of hex messages that are asked side by side (A and AAAA)."""
    return [[question(candidate, t).hex() for t in qtype.split("+")] for candidate in candidates(name, ndots)]
