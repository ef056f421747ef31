"""iptables that redirect: Istio's own program makes the rules, as in a pod that gets the sidecar."""

from __future__ import annotations

import shlex
from typing import ClassVar

from ..conventions import ISTIO
from ..options import Options
from .mechanism import RULES, Mechanism

_CHAINS = ISTIO.chains
# They have no comment to be counted by: those of Istio's rules that turn something, as iptables-save prints them.
_TURNING = {
    "redirect_tcp": rf"{_CHAINS.redirect} -p tcp",
    "inbound_tcp": rf"{_CHAINS.inbound} -p tcp -j {_CHAINS.in_redirect}",
    "redirect_dns_udp": rf"{_CHAINS.output_dns} .*-p udp .*-j REDIRECT",
    "redirect_dns_tcp": rf"{_CHAINS.output_dns} .*-p tcp .*-j REDIRECT",
}
_COUNTED = "|".join(rf"\[(?P<{name}>\d+):\d+\] -A {rule}" for name, rule in _TURNING.items())


class Iptables(Mechanism):
    """See the module."""

    counters: ClassVar = ((("iptables-save", "-c"), _COUNTED),)
    captures: ClassVar[str] = _CHAINS.output

    def files(self, options: Options) -> dict[str, str]:
        """The command as the injector gives it; it finds the name servers in the pod's resolv.conf."""
        return {"istio-iptables": shlex.join(("pilot-agent", "istio-iptables", *arguments(options))) + "\n"}

    def load(self, files: dict[str, str]) -> list[str]:
        """See `Mechanism`."""
        return [f"sh -e {RULES}/{name}" for name in files]


def arguments(options: Options) -> list[str]:
    """These options as Istio's injector writes them."""
    given = {
        "-p": str(options.proxy_port),
        "-z": str(options.inbound_capture_port),
        "-u": options.proxy_uid,
        "-m": options.inbound_interception_mode,
        "-i": options.outbound_ip_ranges_include,
        "-x": options.outbound_ip_ranges_exclude,
        "-b": options.inbound_ports_include,
        "-d": options.inbound_ports_exclude,
    }
    return [word for pair in given.items() for word in pair] + ["--redirect-dns"] * options.redirect_dns


MECHANISM = Iptables()
