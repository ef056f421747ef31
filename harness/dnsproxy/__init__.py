"""A sidecar's DNS proxy with the semantics of Istio's agent: names of the mesh from a table, all others from upstream.

`listener` takes queries, `proxy` decides, `nametable` knows the names, `answer` writes local answers, `upstream` asks
the real servers; all of it on one thread (`reactor`). Relative imports and the standard library only: the folder runs
alone as `python3 -m dnsproxy`. `conformance` (dnspython) is the specification as cases that run against any server;
`differences` lists where this proxy does otherwise than the agent, and why.

The engine was chosen by measurement. One local name by UDP, the server on one core of a virtual machine with two, the
client on the other, ten queries in flight, medians of seven interleaved rounds as ratios to Envoy's dns_filter (p50;
less is better) on a busy machine:

    asyncio, DatagramProtocol                   3.16
    uvloop, DatagramProtocol                    0.85
    epoll, recvfrom, sendto                     0.77
    blocking recvfrom, sendto                   0.77
    epoll, recvmmsg, sendmmsg by ctypes         0.62
    Unbound, local-data                         0.58

Those in Python answered from one dictionary of finished answers by the bytes of the query, which makes a local answer
a slice, a look-up and a concatenation; what is left is the kernel's. Servers with scripting were slower than Envoy in
an earlier look: dnsdist with a Lua rule 1.0 (and 0.55 of its rate), PowerDNS Recursor with Lua 1.16 (0.46). So: an
epoll loop of our own, the first datagram by recvfrom (a lone one is cheapest so), further ones in batches; uvloop
would be a dependency for less. With one query in flight all but asyncio (1.2), Unbound too, take 0.9 to 1.0 of Envoy's
time, nearly all of which is waking two processes.

As built, in the quietest of five runs the proxy took 0.71 of Envoy's p50 with ten in flight and gave 1.45 times its
rate, Unbound beside it 0.70 and 1.52. In the others, with the machine oversubscribed several times, p50 was 0.54 to
0.69 (Unbound 0.51 to 0.68) and the ratio of rates swung between 0.9 and 1.6 (Unbound 1.2 to 1.5).
`tests/bench/dnsproxy.py` repeats the comparison.

Answers are prepared when first asked for, so 50,000 services take 60 MB, and 120 MB once A and AAAA of all were asked;
they are read in 0.5 s of CPU, in slices of 0.2 ms between queries. Counting for metrics adds one to a number that the
prepared answer refers to.
"""
