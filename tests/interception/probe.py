"""A fresh network namespace with two interfaces and a neighbour, real rules in it, and real packets through them.

Run as a program in a namespace of its own (`unshare --net`): reads what to load and send from standard input, prints
what the kernel did. No packet reaches a socket: what arrives or leaves is recorded by its ports, mark and conntrack
zone, and dropped behind all hooks, so that nothing answers and every counter stands for exactly one packet.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ACK = 0x10
PATIENCE_S = 2  # the other end's packets wait for a soft interrupt, on a busy machine for long
CLONE_NEWNET = 0x40000000  # linux/sched.h
IP_TRANSPARENT, IPV6_TRANSPARENT, SO_MARK = 19, 75, 36  # linux/in.h, linux/in6.h, asm-generic/socket.h

# The pod's interfaces, eth0 and eth1, and their neighbour's ends.
POD = {"eth0": ("198.18.7.2", "fd00:7::2"), "eth1": ("198.18.8.2", "fd00:8::2")}
PEER = {"eth0": ("198.18.7.1", "fd00:7::1"), "eth1": ("198.18.8.1", "fd00:8::1")}
MACS = {"eth0": ("02:00:00:00:07:02", "02:00:00:00:07:01"), "eth1": ("02:00:00:00:08:02", "02:00:00:00:08:01")}
BY_ETH0 = ("240.240.0.0/16", "10.0.0.0/8", "fd00:240::/32")  # on link: nothing leaves, so nobody need be there
BY_ETH1 = ("203.0.113.0/24", "fd00:203::/32")

_RECORD = "{ meta l4proto . th sport . th dport . meta mark }"
ZONES = (0, 1, 2)


def _observers() -> str:
    """One set per conntrack zone for what leaves and one for what arrives; then everything is dropped."""
    form = "type inet_proto . inet_service . inet_service . mark; flags dynamic; size 65535;"
    sets = "".join(f"set {name}_{zone} {{ {form} }}\n" for name in ("left", "arrived") for zone in ZONES)
    # An invalid packet has no connection, and so no zone.
    left = f'oifname != "lo" ct state invalid update @left_0 {_RECORD}\n'
    left += "\n".join(f'oifname != "lo" ct zone {zone} update @left_{zone} {_RECORD}' for zone in ZONES)
    arrived = f"ct state invalid update @arrived_0 {_RECORD}\n"
    arrived += "\n".join(f"ct zone {zone} update @arrived_{zone} {_RECORD}" for zone in ZONES)
    icmp = "meta l4proto { icmp, ipv6-icmp } drop"
    return f"""table inet observers {{
{sets}
chain early_out {{ type filter hook output priority -400; {icmp}; }}
chain early_in {{ type filter hook prerouting priority -400; {icmp}; }}
chain leaving {{ type filter hook postrouting priority 300;
{left}
oifname != "lo" drop; }}
chain arriving {{ type filter hook input priority 300;
{arrived}
drop; }}
}}
"""


def call(*argv: str, given: str = "") -> str:
    """What a program printed; its complaint is the exception."""
    done = subprocess.run(
        argv, input=given, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr or done.stdout}")
    return done.stdout


def new_namespace() -> None:
    """This process is in a network namespace of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def settle(addresses: dict[str, tuple[str, str]], others: dict[str, tuple[str, str]], mine: int) -> None:
    """Addresses, fixed neighbours and silence: no packet but those sent on purpose."""
    lines = ["link set lo up"]
    for name in addresses:
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text("1")
        Path(f"/proc/sys/net/ipv6/conf/{name}/accept_ra").write_text("0")
        lines += [f"link set {name} address {MACS[name][mine]}", f"link set {name} up"]
        lines += [f"address add {addresses[name][0]}/24 dev {name}"]
        lines += [f"address add {addresses[name][1]}/64 dev {name} nodad"]
        for other in others[name]:
            lines.append(f"neighbour replace {other} lladdr {MACS[name][1 - mine]} dev {name} nud permanent")
    call("ip", "-batch", "-", given="\n".join(lines) + "\n")


def wait_for_addresses() -> None:
    """IPv6 addresses can be used once both ends of the cable are up, and the kernel has noticed."""
    while call("ip", "-6", "address", "show", "tentative"):
        time.sleep(0.001)


class Neighbour:
    """A process in a namespace at the other end of both interfaces, which sends what it is told."""

    def __init__(self) -> None:
        ready_out, ready_in = os.pipe()
        order_out, order_in = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                new_namespace()
                os.write(ready_in, b"1")
                with os.fdopen(order_out) as orders, os.fdopen(ready_in, "wb", buffering=0) as done:
                    os.close(order_in)
                    orders.readline()
                    settle(PEER, POD, 1)
                    routes = [f"route add {net} via {POD['eth1'][1 if ':' in net else 0]} dev eth1" for net in BY_ETH0]
                    call("ip", "-batch", "-", given="\n".join(routes) + "\n")
                    wait_for_addresses()
                    done.write(b"1")
                    for line in orders:
                        for packet in json.loads(line):
                            send(packet)
                        done.write(b"1")
                os._exit(0)
            except BaseException as problem:  # noqa: BLE001  a forked child must not return
                print(problem, file=sys.stderr)
                os._exit(1)
        self._orders, self._done = os.fdopen(order_in, "w", buffering=1), ready_out
        self.wait()

    def wait(self) -> None:
        if os.read(self._done, 1) != b"1":
            raise RuntimeError("the neighbour died")

    def order(self, line: str) -> None:
        self._orders.write(line + "\n")
        self.wait()


def connect_namespaces() -> Neighbour:
    """Two interfaces, and a neighbour behind them."""
    neighbour = Neighbour()
    for name in POD:
        call("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", str(neighbour.pid))
    settle(POD, PEER, 0)
    routes = [f"route add {net} dev {name}" for name, nets in (("eth0", BY_ETH0), ("eth1", BY_ETH1)) for net in nets]
    call("ip", "-batch", "-", given="\n".join(routes) + "\n")
    neighbour.order("settle")
    wait_for_addresses()
    return neighbour


def open_socket(packet: dict[str, Any]) -> socket.socket:
    """A socket that belongs to the packet's user and group; the rules ask who made it."""
    family = socket.AF_INET6 if ":" in packet["destination"] else socket.AF_INET
    kind, protocol = (socket.SOCK_STREAM, 0) if packet["protocol"] == "tcp" else (socket.SOCK_DGRAM, 0)
    if packet.get("state") == "INVALID":
        kind, protocol = socket.SOCK_RAW, socket.IPPROTO_TCP
    os.setegid(packet.get("gid") or 0)
    os.seteuid(packet.get("uid") or 0)
    try:
        return socket.socket(family, kind, protocol)
    finally:
        os.seteuid(0)
        os.setegid(0)


def send(packet: dict[str, Any]) -> None:
    """One datagram, the first segment of a connection that is given up at once, or one of no connection."""
    with open_socket(packet) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if packet.get("mark"):
            out.setsockopt(socket.SOL_SOCKET, SO_MARK, packet["mark"])
        there = (packet["destination"], packet["destination_port"])
        if packet.get("state") == "INVALID":
            out.bind((packet["source"], 0))
            ports = packet["source_port"], packet["destination_port"]
            with contextlib.suppress(PermissionError):
                out.sendto(struct.pack("!HHIIBBHHH", *ports, 1, 1, 5 << 4, ACK, 1024, 0, 0), (there[0], 0))
            return
        out.bind((packet["source"], packet["source_port"]))
        out.setblocking(False)
        with contextlib.suppress(PermissionError, BlockingIOError):  # dropped behind the hooks; given up at once
            if packet["protocol"] == "udp":
                out.sendto(b"x", there)
            else:
                out.connect(there)


def listen_transparently() -> list[socket.socket]:
    """TPROXY drops what no transparent socket waits for."""
    sockets = []
    for port in (15001, 15006):
        for family, level, option in (
            (socket.AF_INET, socket.IPPROTO_IP, IP_TRANSPARENT),
            (socket.AF_INET6, socket.IPPROTO_IPV6, IPV6_TRANSPARENT),
        ):
            one = socket.socket(family, socket.SOCK_STREAM)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.setsockopt(level, option, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(("", port))
            one.listen()
            sockets.append(one)
    return sockets


def recorded(name: str) -> list[list[int]]:
    """What the observers saw: protocol, source port, destination port, mark, zone."""
    seen = []
    for zone in ZONES:
        document = json.loads(call("nft", "-j", "-n", "list", "set", "inet", "observers", f"{name}_{zone}"))
        (content,) = [entry["set"] for entry in document["nftables"] if "set" in entry]
        seen += [[*element["concat"], zone] for element in content.get("elem", [])]
    return sorted(seen)


def iptables_counters(tool: str) -> dict[str, list[int]]:
    """Packets per rule, by "table chain", in order."""
    found: dict[str, list[int]] = {}
    table = ""
    for line in call(f"{tool}-save", "-c").splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif match := re.match(r"\[(\d+):\d+\] -A (\S+)", line):
            found.setdefault(f"{table} {match[2]}", []).append(int(match[1]))
    return found


def nftables_counters() -> dict[str, list[int]]:
    """The same for the tables of nft, with the chains' names as iptables would have them."""
    found: dict[str, list[int]] = {}
    table = chain = ""
    for line in map(str.strip, call("nft", "list", "ruleset", "inet").splitlines()):
        if line.startswith("table "):
            table = line.split()[2].partition("-proxy-")[2]
        elif line.startswith("chain "):
            chain = line.split()[1].upper().replace("-", "_")
        elif match := re.search(r"counter packets (\d+)", line):
            found.setdefault(f"{table} {chain}", []).append(int(match[1]))
    return found


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Load, send, read."""
    call("nft", "-f", "-", given=_observers())  # before any interface is up: no chatter of the kernel meets a rule
    Path("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").write_text("0")  # a segment out of nowhere is invalid
    neighbour = connect_namespaces()
    listeners = listen_transparently()
    for argv, text in request["load"]:
        call(*argv, given=text)
    wait_for_addresses()
    for packet in request["out"]:
        send(packet)
    if request["in"]:
        neighbour.order(json.dumps(request["in"]))
    result = {"left": recorded("left"), "arrived": recorded("arrived")}
    deadline = time.monotonic() + PATIENCE_S
    while len(result["left"]) + len(result["arrived"]) < request["patient_for"]:
        if time.monotonic() > deadline:
            break  # a packet that is nowhere: the test says which
        result = {"left": recorded("left"), "arrived": recorded("arrived")}
    counters = nftables_counters() if request["mechanism"] == "nftables" else {}
    if request["mechanism"] == "iptables":
        for tool in ("iptables", "ip6tables"):
            for place, counts in iptables_counters(tool).items():
                counters[f"{tool} {place}"] = counts
    for one in listeners:
        one.close()
    return {**result, "counters": counters}


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
