"""The options of `meshdns dns-proxy` and `python -m dnsproxy`, as text; `command` checks them. Imports nothing slow."""

from __future__ import annotations

import argparse
from typing import Any

from . import differences

DESCRIPTION = "answer DNS queries from a name table as Istio's agent does, and forward the rest"
LISTEN = {4: "127.0.0.1:15053", 6: "[::1]:15053"}  # Istio's, by the family of the servers in resolv.conf
TIMEOUT_MS = 5000  # Istio's, per server
TTL_S = 30  # Istio's: short enough to follow the table, which it cannot recall from a client's cache


class _Differences(argparse.Action):
    """Like --help: prints and exits, whatever else is given or missing."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how, nargs=0, default=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(differences.text(), end="")
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option; values stay text until `command.serve` checks them."""
    add = parser.add_argument
    add("--differences", action=_Differences, help="print where it does otherwise than Istio's agent and why, and exit")
    add("--name-table", required=True, metavar="FILE",
        help="JSON; a change is in force within 0.2 s (50,000 hosts: 1 s)")  # fmt: skip
    add("--listen", action="append", metavar="ADDR:PORT",
        help="UDP and TCP; port 0 takes a free one; may be repeated (default: port 15053 of 127.0.0.1 or ::1 or both, "
             "by the families of the servers in --resolv-conf)")  # fmt: skip
    add(
        "--upstream",
        action="append",
        default=[],
        metavar="ADDR:PORT",
        help="a DNS server for all other names; may be repeated (default: the servers in --resolv-conf)",
    )
    add("--resolv-conf", metavar="FILE",
        help="where the search domains stand, and the servers that are asked where no --upstream is given")  # fmt: skip
    add("--namespace", default="default", metavar="NS", help="whose services have one-word names (default: default)")
    add("--domain", default="cluster.local", help="the cluster's (default: cluster.local)")
    add("--parallel", action="store_true", help="ask all servers at once, the first answer counts")
    add("--timeout-ms", default=str(TIMEOUT_MS), metavar="N", help=f"per server (default: {TIMEOUT_MS})")
    more = parser.add_argument_group("beyond Istio's agent")
    add = more.add_argument
    add("--cache", action="store_true", help="keep upstream answers for their TTL")
    add("--serve-stale-s", default="0", metavar="N", help="and, when no server answers, up to N s longer")
    add("--soa", action="store_true", help="SOA in negative local answers, so that clients can cache them")
    add("--ttl-s", default=str(TTL_S), metavar="N", help=f"of local answers (default: {TTL_S})")
    add("--all-search", action="store_true", help="answer names below every search domain, not the first only")
    add("--metrics", metavar="ADDR:PORT", help="Prometheus page and readiness over HTTP")
