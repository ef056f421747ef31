"""Owns a pod's network namespace, so that the others come and go without losing it."""

from meshdns.lab.parts.component import LOW_PORTS, NOBODY, Alike, Container

SYSCTLS = LOW_PORTS | {
    "net.ipv4.ip_local_port_range": "1024 65535",  # a new connection per request uses up ports
    # But for those that parts listen on: an API server's connections to etcd had taken istiod's before it started.
    "net.ipv4.ip_local_reserved_ports": "2379,2380,6443,8080,8083,8181,8443,9153,15000-15099",
    # No TIME_WAIT: redirected connections all end at 127.0.0.1:15001, so a source port used again towards another
    # address meets the proxy's TIME_WAIT of its last use, whose timestamps are another's: RST, and 16 ms lost. It takes
    # thousands of connections a minute, which a load agent makes and a pod seldom does.
    "net.ipv4.tcp_max_tw_buckets": "0",
}
PART = Alike("web", Container(("sleep", "infinity"), user=NOBODY, sysctls=SYSCTLS, abrupt=True), carries=False)
