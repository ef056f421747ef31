"""Prints whether the sidecar gets an IPv6 connection under the rules of Istio's agent, which was not asked for IPv6.

Run in a network namespace of its own, with the agent and options of its own more than an injected pod's.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time

INJECTED = (
    "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT",
    "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020",
)  # fmt: skip
LINK = """link set lo up
link add v0 type veth peer name v1
addr add 198.18.7.1/24 dev v0
-6 addr add 2001:db8::1/64 dev v0 nodad
link set v0 up
link set v1 up
"""
NOBODY = ("2001:db8::2", 80)


def main() -> None:
    subprocess.run(["ip", "-batch", "-"], input=LINK, text=True, check=True)
    while subprocess.run(["ip", "-6", "addr", "show", "tentative"], capture_output=True, check=True).stdout:
        time.sleep(0.01)
    agent, *options = sys.argv[1:]
    subprocess.run([agent, "istio-iptables", *INJECTED, *options], stdout=subprocess.DEVNULL, check=True)
    with socket.create_server(("::", 15001), family=socket.AF_INET6), socket.socket(socket.AF_INET6) as client:
        client.settimeout(1)
        print("captured" if client.connect_ex(NOBODY) == 0 else "let through")


if __name__ == "__main__":
    main()
