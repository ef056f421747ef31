"""Interception by eBPF, for kernels and engines that allow it: the programs (mesh.bpf.c) and their loader.

Runs in a container with the standard library and libbpf only: `python3 -m interception.ebpf --config FILE`, with the
options of all mechanisms; those that the programs cannot honour are refused (`settings.from_options`). Verdicts are
those of Istio's rules. Where it differs from them all the same:

- A connection is rewritten before it is routed. A virtual IP needs no route, no packet ever bears it, and netfilter
  sees the application's connections and queries as ones to 127.0.0.1, ports 15001 and 15053.
- What exists when the loader starts goes on as it was: connections, and UDP sockets already connected to a resolver.
- Sockets that the container engine itself holds in the pod's namespace (its name server) are not captured.
- An unconnected UDP socket that asks several name servers gets all answers as from the one it asked last.
- The peer of an MPTCP socket reads 127.0.0.1:15001. A socket bound to a network device cannot be captured: it fails.
- No packet bears a mark or a conntrack zone: an answer is told by its socket.
- Users and groups are those that connect, not those that made the socket.
- Native IPv6 is let alone, as by rules while enable_ipv6 is false; IPv4 on an IPv6 socket (::ffff:a.b.c.d) is captured.
- In a pod with several addresses captured connections come from 127.0.0.1.
- Once the loader is gone, connections that it captured go on, and getpeername reads 127.0.0.1:15001.
"""
