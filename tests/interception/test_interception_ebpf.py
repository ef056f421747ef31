"""Interception by eBPF in real containers: what is captured, what is not, what it counts, and how it ends."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshdns.core import process
from meshdns.lab.compose import engine

pytestmark = pytest.mark.testbed

PREFIX = "meshdns-test-ebpf"
NET = "198.18.99"
POD, DEST, RESOLVER, PEER = (f"{NET}.{host}" for host in (40, 21, 53, 60))
VIP, SELF_VIP, NOBODY, CLUSTER_IP = "240.240.0.10", "240.240.0.11", "240.240.0.53", "10.96.0.10"
PROXY = "1337:1337"
OPTIONS = {
    "inbound_ports_include": "*",
    "inbound_ports_exclude": "15020,15021,15090",
    "outbound_ip_ranges_include": "*",
}
CAPTURED_DNS = {**OPTIONS, "redirect_dns": True, "capture_all_dns": True}
ALL, DNS = ("--config", "/lab/all.json"), ("--config", "/lab/dns.json")
CONFINED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges:true", "--read-only")

# The application: answers each HTTP request with its own name and the address it was called from.
APP = """
import http.server, socketserver, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"app {self.client_address[0]}".encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
for port in (8080, 9999):
    server = http.server.ThreadingHTTPServer(("0.0.0.0", port), Page)
    threading.Thread(target=server.serve_forever).start()
"""
# What the tests run in containers; each ends by printing one JSON value.
TOOLS = """
import http.client, json, socket, struct
from concurrent.futures import ThreadPoolExecutor
def get(host, port=80, source=None, family=socket.AF_INET):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(3)
    if source: s.bind((source, 0))
    s.connect((("::ffff:" if family == socket.AF_INET6 else "") + host, port))
    peer, name = s.getpeername()[:2], s.getsockname()[0]
    c = http.client.HTTPConnection(host, port); c.sock = s
    c.request("GET", "/"); r = c.getresponse()
    return {"body": r.read().decode(), "listeners": r.headers.get_all("x-listener") or [], "peer": list(peer),
            "original": r.headers.get("x-original"), "source": r.headers.get("x-source"), "name": name}
def attempt(*a, **k):
    try: return get(*a, **k)
    except OSError as error: return {"error": type(error).__name__}
def query(name, qtype=1):
    labels = b"".join(bytes([len(x)]) + x.encode() for x in name.split("."))
    return struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack(">2H", qtype, 1)
def answer(message):
    return {"rcode": message[3] & 15, "address": socket.inet_ntoa(message[-4:]) if message[7] else ""}
def udp(name, server, connected, family=socket.AF_INET, port=53):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(3)
    where = (("::ffff:" if family == socket.AF_INET6 else "") + server, port)
    if connected: s.connect(where); s.send(query(name))
    else: s.sendto(query(name), where)
    message, source = s.recvfrom(2000)
    return {**answer(message), "from": list(source[:2]), "peer": list(s.getpeername()[:2]) if connected else []}
def tcp_info(size):
    import ctypes
    length, buffer, s = ctypes.c_uint32(size), ctypes.create_string_buffer(size), socket.socket()
    code = ctypes.CDLL(None).getsockopt(s.fileno(), socket.IPPROTO_TCP, socket.TCP_INFO, buffer, ctypes.byref(length))
    return length.value if code == 0 else -1
def tcp(name, server):
    s = socket.create_connection((server, 53), timeout=3)
    q = query(name); s.sendall(struct.pack(">H", len(q)) + q)
    n = struct.unpack(">H", s.recv(2, socket.MSG_WAITALL))[0]
    return {**answer(s.recv(n, socket.MSG_WAITALL)), "peer": list(s.getpeername())}
"""


def docker(*argv: str, timeout_s: float = 60) -> str:
    done = process.run("docker", *argv, timeout_s=timeout_s)
    assert done.ok, f"docker {' '.join(argv)}: {done.last_lines(5)}"
    return done.out.strip()


def eventually(what: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def inside(container: str, expression: str, user: str = "") -> Any:
    """The value of a Python expression over TOOLS."""
    program = f"{TOOLS}\nprint(json.dumps({expression}))"
    options = ["--user", user] if user else []
    return json.loads(docker("exec", *options, f"{PREFIX}-{container}", "python3", "-c", program))


@dataclass
class Lab:
    """A pod with its application and sidecar, a server, a resolver, and a peer, on a network of their own."""

    tags: Mapping[str, str]
    folder: Path

    def start(self, name: str, image: str, *options: str, command: tuple[str, ...] = ()) -> None:
        docker("run", "--detach", "--name", f"{PREFIX}-{name}", *CONFINED, *options, self.tags[image], *command)

    def in_pod(self, name: str, image: str, *options: str, command: tuple[str, ...] = ()) -> None:
        self.start(name, image, "--network", f"container:{PREFIX}-pod", *options, command=command)

    def loader(self, *arguments: str, capabilities: tuple[str, ...] = ("--cap-add", "SYS_ADMIN")) -> None:
        """The loader has been started; it may not be ready."""
        self.remove("loader")
        tree = "/sys/fs/cgroup" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "/sys/fs/cgroup/unified"
        volumes = ("-v", f"{tree}:/cgroup2:ro", "-v", f"{self.folder}:/lab:ro")
        command = ("python3", "-m", "interception.ebpf", *arguments)
        self.in_pod("loader", "observer", *capabilities, *volumes, command=command)

    def ready(self, *arguments: str) -> None:
        """Interception is in force."""
        self.loader(*arguments)
        docker("exec", f"{PREFIX}-loader", "python3", "-m", "interception.ebpf", "--wait", "10")

    def envoy(self) -> None:
        self.in_pod("envoy", "sidecar", "-v", f"{self.folder}/envoy.json:/envoy.json:ro", "--entrypoint", "envoy",
                    command=("-c", "/envoy.json", "--concurrency", "1", "--disable-hot-restart"))  # fmt: skip
        self.envoy_ready()

    def envoy_ready(self) -> None:
        eventually(lambda: process.run("docker", "exec", f"{PREFIX}-app", "python3", "-c",
                   "import socket\nfor p in (15001, 15006): socket.create_connection(('127.0.0.1', p), 1)",
                   timeout_s=10).ok)  # fmt: skip

    def counters(self) -> dict[str, int]:
        text = inside(
            "loader", "__import__('urllib.request').request.urlopen('http://127.0.0.1:15099/').read().decode()"
        )
        found: dict[str, int] = json.loads(text)["counters"]
        return found

    @contextlib.contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """What the block added to the counters, zeros left out."""
        before = self.counters()
        added: dict[str, int] = {}
        yield added
        after = self.counters()
        added |= {name: after[name] - before[name] for name in after if after[name] != before[name]}

    def remove(self, *names: str) -> None:
        process.run("docker", "rm", "--force", *(f"{PREFIX}-{name}" for name in names), timeout_s=60)


def hcm(listener: str, cluster: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters"
    said = {"x-listener": listener, "x-original": "%DOWNSTREAM_LOCAL_ADDRESS%",
            "x-source": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}  # fmt: skip
    return {"name": "hcm", "typed_config": {
        "@type": f"{kind}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": listener,
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{kind}.http.router.v3.Router"}}],
        "route_config": {
            "response_headers_to_add": [
                {"header": {"key": key, "value": value}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
                for key, value in said.items()
            ],
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}],
        }}}  # fmt: skip


def tcp_proxy(cluster: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    return {"name": "tcp", "typed_config": {"@type": kind, "stat_prefix": cluster, "cluster": cluster}}


def static(name: str, *ends: tuple[str, int]) -> dict[str, Any]:
    members = [{"endpoint": {"address": address(*end)}} for end in ends]
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]},
    }


def address(host: str, port: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port, "protocol": protocol}}


def listener(name: str, host: str, port: int, *chains: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "address": address(host, port), "filter_chains": list(chains), **more}


def filters(one: dict[str, Any]) -> dict[str, Any]:
    return {"filters": [one]}


def dns_listener() -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions"
    resolver = {
        "@type": f"{kind}.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [address(RESOLVER, 53)],
        "dns_resolver_options": {"no_default_search_domain": True},
    }
    known = {"name": "mesh.test", "endpoint": {"address_list": {"address": [VIP]}}}
    config = {
        "@type": f"{kind}.filters.udp.dns_filter.v3.DnsFilterConfig",
        "stat_prefix": "dns",
        "client_config": {
            "max_pending_lookups": 99,
            "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": resolver},
        },
        "server_config": {"inline_dns_table": {"virtual_domains": [known]}},
    }
    at = address("127.0.0.1", 15053, "UDP")
    return {"name": "dns", "address": at, "listener_filters": [{"name": "dns", "typed_config": config}]}


def bootstrap() -> dict[str, Any]:
    """Outbound with two virtual IPs and passthrough, inbound passthrough, DNS with one name of its own."""
    original_dst = "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
    original = {"name": "original", "typed_config": {"@type": original_dst}}
    nowhere = tcp_proxy("nowhere")  # what was not redirected names the listener's own port
    outbound, inbound = (
        [{"filter_chain_match": {"destination_port": port}, **filters(nowhere)}, filters(hcm(name, cluster))]
        for name, cluster, port in (("out", "passthrough", 15001), ("in", "inbound", 15006))
    )
    listeners = [
        listener("out", "0.0.0.0", 15001, *outbound, use_original_dst=True),
        listener("in", "0.0.0.0", 15006, *inbound, listener_filters=[original]),
        listener("vip", VIP, 80, filters(hcm("vip", "dest")), bind_to_port=False),
        listener("self", SELF_VIP, 80, filters(hcm("vip", "self")), bind_to_port=False),
        listener("dns-tcp", "127.0.0.1", 15053, filters(tcp_proxy("resolver"))),
        dns_listener(),
    ]
    passthrough = {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}
    source = {"address": "127.0.0.6", "port_value": 0}
    clusters = [
        {"name": "passthrough", **passthrough},
        {"name": "inbound", **passthrough, "upstream_bind_config": {"source_address": source}},
        static("dest", (DEST, 80)),
        static("self", (POD, 8080)),
        static("resolver", (RESOLVER, 53)),
        static("nowhere"),
    ]
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


NGINX = """pid /tmp/pid; error_log stderr; events {}
http { access_log off; client_body_temp_path /tmp; proxy_temp_path /tmp; fastcgi_temp_path /tmp; uwsgi_temp_path /tmp;
  scgi_temp_path /tmp; server { listen 80; location / { return 200 "dest $remote_addr"; } } }
"""
COREFILE = "test:53 {\n    file /lab/test.zone\n}\n"
# Without a record NS, which would be added to each answer.
ZONE = f"$TTL 5\n@ SOA ns root 1 1 1 1 1\ndest A {DEST}\nmesh A 192.0.2.1\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    said: list[str] = []
    engine.ensure(said.append)
    folder = tmp_path_factory.mktemp("ebpf")
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    files = {"envoy.json": json.dumps(bootstrap()), "nginx.conf": NGINX, "Corefile": COREFILE, "test.zone": ZONE,
             "resolv.conf": f"nameserver {NOBODY}\n", "all.json": json.dumps(OPTIONS),
             "dns.json": json.dumps(CAPTURED_DNS),
             "excluded.json": json.dumps({**CAPTURED_DNS, "outbound_ports_exclude": "80,53"})}  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text)
    made = Lab(engine.images(said.append, ["client", "coredns", "dnsproxy", "observer", "sidecar", "web"]), folder)
    everything = ("loader", "envoy", "app", "pod", "dest", "resolver", "peer")
    made.remove(*everything)
    process.run("docker", "network", "rm", PREFIX, timeout_s=30)
    try:
        docker("network", "create", "--internal", "--subnet", f"{NET}.0/24", PREFIX)
        _populate(made)
        yield made
    finally:
        made.remove(*everything)
        process.run("docker", "network", "rm", PREFIX, timeout_s=30)


def _populate(made: Lab) -> None:
    nobody = ("--user", "65534:65534", "--tmpfs", "/tmp", "--network", PREFIX)
    made.start("dest", "web", *nobody, "--ip", DEST, "-v", f"{made.folder}/nginx.conf:/nginx.conf:ro",
               command=("nginx", "-g", "daemon off;", "-c", "/nginx.conf"))  # fmt: skip
    made.start("resolver", "coredns", *nobody, "--ip", RESOLVER, "-v", f"{made.folder}:/lab:ro",
               command=("-conf", "/lab/Corefile"))  # fmt: skip
    made.start("peer", "client", "--network", PREFIX, "--ip", PEER)
    made.start("pod", "web", *nobody, "--ip", POD, command=("sleep", "infinity"))
    made.in_pod("app", "client", "-v", f"{made.folder}/resolv.conf:/etc/resolv.conf:ro", "-v", f"{made.folder}:/lab:ro",
                command=("python3", "-c", APP))  # fmt: skip
    made.ready(*DNS)
    made.envoy()


@pytest.fixture
def pod(lab: Lab) -> Lab:
    """The pod, intercepted with DNS capture, both sidecar and loader there."""
    if process.run("docker", "exec", f"{PREFIX}-loader", "true", timeout_s=10).ok:
        return lab
    lab.ready(*DNS)
    return lab


def test_a_virtual_ip_reaches_its_listener_and_the_application_sees_it(pod: Lab) -> None:
    with pod.counted() as added:
        seen = inside("app", f"get('{VIP}')")
    assert seen["body"] == f"dest {POD}"
    assert (seen["listeners"], seen["original"]) == (["vip"], f"{VIP}:80")
    assert seen["peer"] == [VIP, 80]
    assert seen["name"] == seen["source"] == POD  # as REDIRECT leaves it
    assert added == {"redirect_tcp": 1, "handed_over": 1}


def test_another_address_is_passed_through(pod: Lab) -> None:
    seen = inside("app", f"get('{DEST}')")
    assert (seen["listeners"], seen["original"], seen["body"]) == (["out"], f"{DEST}:80", f"dest {POD}")


def test_any_user_but_the_proxys_is_captured(pod: Lab) -> None:
    with pod.counted() as added:
        assert [inside("app", f"get('{DEST}')", user)["listeners"] for user in ("0", "1000")] == [["out"]] * 2
        for proxy in ("1337:1000", "1000:1337", PROXY):
            assert inside("app", f"get('{DEST}')", proxy)["listeners"] == []
    assert added == {"redirect_tcp": 2, "handed_over": 2}


def test_inbound_connections_go_through_the_proxy_to_any_port(pod: Lab) -> None:
    with pod.counted() as added:
        for port in (8080, 9999):
            seen = inside("peer", f"get('{POD}', {port})")
            assert (seen["listeners"], seen["original"]) == (["in"], f"{POD}:{port}")
            assert (seen["source"], seen["body"]) == (PEER, "app 127.0.0.6")
    assert added == {"inbound_tcp": 2}


def test_excluded_inbound_ports_are_the_applications_own(pod: Lab) -> None:
    with pod.counted() as added:
        assert inside("peer", f"attempt('{POD}', 15021)") == {"error": "ConnectionRefusedError"}
    assert added == {}


def test_other_pods_of_the_same_engine_are_left_alone(pod: Lab) -> None:
    with pod.counted() as added:
        assert inside("peer", f"get('{DEST}')")["body"] == f"dest {PEER}"
        for connected in (True, False):
            assert inside("peer", f"udp('mesh.test', '{RESOLVER}', {connected})")["address"] == "192.0.2.1"
    assert added == {}


def test_loopback_and_the_own_address_are_free(pod: Lab) -> None:
    with pod.counted() as added:
        assert inside("app", "get('127.0.0.1', 8080)")["body"] == "app 127.0.0.1"
        own = inside("app", f"get('{POD}', 8080)")
    assert (own["listeners"], own["body"]) == ([], f"app {POD}")
    assert added == {}


def test_the_own_address_through_the_proxy_comes_in_again(pod: Lab) -> None:
    with pod.counted() as added:
        seen = inside("app", f"get('{SELF_VIP}')")
    assert (sorted(seen["listeners"]), seen["body"]) == (["in", "vip"], "app 127.0.0.6")
    assert added == {"redirect_tcp": 1, "handed_over": 1, "self_tcp": 1}


@pytest.mark.parametrize("server", [RESOLVER, NOBODY, "127.0.0.11"])
@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
def test_udp_dns_is_answered_by_the_proxy_from_the_asked_address(
    pod: Lab, server: str, connected: bool, family: str
) -> None:
    with pod.counted() as added:
        seen = inside("app", f"udp('mesh.test', '{server}', {connected}, socket.{family})")
    asked = [f"::ffff:{server}" if family == "AF_INET6" else server, 53]
    assert seen == {"rcode": 0, "address": VIP, "from": asked, "peer": asked if connected else []}
    assert added == {"redirect_dns_udp": 1}


def test_names_the_proxy_does_not_know_are_asked_of_the_resolver(pod: Lab) -> None:
    assert inside("app", f"udp('dest.test', '{NOBODY}', True)")["address"] == DEST


def test_tcp_dns_goes_to_the_proxy(pod: Lab) -> None:
    with pod.counted() as added:
        seen = inside("app", f"tcp('dest.test', '{NOBODY}')")
    assert seen == {"rcode": 0, "address": DEST, "peer": [NOBODY, 53]}
    assert added == {"redirect_dns_tcp": 1, "handed_over": 1}


def test_the_proxys_own_queries_leave(pod: Lab) -> None:
    with pod.counted() as added:
        seen = inside("app", f"udp('mesh.test', '{RESOLVER}', True)", PROXY)
    assert seen["address"] == "192.0.2.1"
    assert added == {}


def test_glibc_and_an_http_client_work_by_name(pod: Lab) -> None:
    assert docker("exec", f"{PREFIX}-app", "getent", "ahostsv4", "mesh.test").split()[0] == VIP
    seen = inside("app", "__import__('urllib.request').request.urlopen('http://mesh.test/').headers.get('x-listener')")
    assert seen == "vip"


def test_a_mapped_address_of_an_ipv6_socket_is_captured(pod: Lab) -> None:
    seen = inside("app", f"get('{VIP}', family=socket.AF_INET6)")
    assert (seen["listeners"], seen["original"]) == (["vip"], f"{VIP}:80")
    assert (seen["peer"], seen["name"]) == ([f"::ffff:{VIP}", 80], f"::ffff:{POD}")


def test_a_bound_source_address_is_kept(pod: Lab) -> None:
    assert inside("app", f"get('{VIP}', source='{POD}')")["source"] == POD


def test_many_at_once_keep_their_destinations_and_are_counted_exactly(pod: Lab) -> None:
    many = "list(ThreadPoolExecutor(16).map(lambda i: get(['{}', '{}'][i % 2], {})['original'], range({})))"
    with pod.counted() as added:
        assert inside("app", many.format(VIP, DEST, 80, 600)) == [f"{VIP}:80", f"{DEST}:80"] * 300
        assert inside("peer", many.format(POD, POD, 8080, 100)) == [f"{POD}:8080"] * 100
        inside("app", f"[udp('mesh.test', '{NOBODY}', i % 2)['rcode'] for i in range(200)]")
    assert added == {"redirect_tcp": 600, "handed_over": 600, "redirect_dns_udp": 200, "inbound_tcp": 100}


@pytest.mark.parametrize("name", ["app", "envoy"])
def test_restarts_of_the_pods_containers_keep_interception(pod: Lab, name: str) -> None:
    docker("restart", "--time", "1", f"{PREFIX}-{name}")
    pod.envoy_ready()
    assert inside("app", f"get('{VIP}')")["listeners"] == ["vip"]
    eventually(lambda: inside("peer", f"attempt('{POD}', 8080)").get("listeners") == ["in"])


def test_a_socket_option_larger_than_a_page_is_left_alone(pod: Lab) -> None:
    known = inside("peer", "tcp_info(1 << 16)")  # not intercepted, the same kernel
    assert inside("app", "[tcp_info(64), tcp_info(1 << 16)]") == [64, known]


def attached() -> list[str]:
    """Programs attached anywhere in the pod's network namespace or cgroups: seen by what they do."""
    return [name for name, seen in (
        ("outbound", inside("app", f"attempt('{DEST}')").get("listeners")),
        ("inbound", inside("peer", f"attempt('{POD}', 8080)").get("listeners")),
        ("dns", inside("app", f"udp('mesh.test', '{RESOLVER}', True)")["address"] == VIP),
    ) if seen]  # fmt: skip


@pytest.mark.parametrize("number", ["TERM", "KILL"])
def test_the_loaders_end_is_the_end_of_interception_and_its_restart_needs_nothing_else(pod: Lab, number: str) -> None:
    assert attached() == ["outbound", "inbound", "dns"]
    docker("kill", "--signal", number, f"{PREFIX}-loader")
    code = docker("wait", f"{PREFIX}-loader")
    assert code == ("0" if number == "TERM" else "137")
    assert attached() == []
    pod.ready(*DNS)  # the proxy is there already: its listener is found
    assert attached() == ["outbound", "inbound", "dns"]


def test_without_dns_capture_queries_leave_by_themselves(pod: Lab) -> None:
    pod.ready(*ALL)
    try:
        assert attached() == ["outbound", "inbound"]
        with pod.counted() as added:
            assert inside("app", f"get('{DEST}', 53)")["original"] == f"{DEST}:53"
        assert added == {"redirect_tcp": 1, "handed_over": 1}
    finally:
        pod.remove("loader")


def test_excluded_outbound_ports_leave_by_themselves(pod: Lab) -> None:
    pod.ready("--config", "/lab/excluded.json")
    try:
        assert attached() == ["inbound"]
    finally:
        pod.remove("loader")


@pytest.mark.parametrize(
    ("closed", "expected"), [(True, {"error": "ConnectionRefusedError"}), (False, {"body": f"app {PEER}"})]
)
def test_an_absent_proxy(pod: Lab, closed: bool, expected: dict[str, str]) -> None:
    pod.ready(*DNS, *(["--fail-closed"] if closed else []))
    pod.remove("envoy")
    try:
        with pod.counted() as added:
            assert inside("app", f"attempt('{DEST}')") == {"error": "ConnectionRefusedError"}
            seen = inside("peer", f"attempt('{POD}', 8080)")
        assert expected.items() <= seen.items()
        assert added["redirect_tcp"] == 1
        assert added["proxy_absent"] >= 1
        assert "handed_over" not in added
        assert "inbound_tcp" not in added
    finally:
        pod.envoy()
    assert attached() == ["outbound", "inbound", "dns"]
    pod.remove("loader")


def test_netfilter_still_serves_the_proxy_and_counts_packets(pod: Lab) -> None:
    """ClusterIP translation is the node's and the proxy needs it; the application's queries no longer pass there."""
    rules = f"""*raw
-A OUTPUT -p udp --dport 15053 -m owner ! --uid-owner 1337 -m comment --comment client
-A OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -m comment --comment proxy
COMMIT
*nat
-I OUTPUT -d {CLUSTER_IP} -p udp -m comment --comment clusterip -j DNAT --to {RESOLVER}
COMMIT
"""
    netfilter(f"ip route replace {CLUSTER_IP} dev eth0; iptables-restore --noflush <<END\n{rules}END")
    try:
        assert inside("app", f"udp('mesh.test', '{CLUSTER_IP}', True)['address']", PROXY) == "192.0.2.1"
        inside("app", f"[udp('mesh.test', '{CLUSTER_IP}', i % 2)['address'] for i in range(20)]")
        packets = re.findall(r"^\[(\d+):.*--comment (\w+)", netfilter("iptables-save -c"), re.MULTILINE)
        assert {name: int(count) for count, name in packets} == {"client": 20, "proxy": 1, "clusterip": 1}
    finally:
        netfilter(f"ip route del {CLUSTER_IP}; iptables -t raw -F OUTPUT; iptables -t nat -D OUTPUT 1")


def netfilter(script: str) -> str:
    """What a shell script says in the pod's network namespace, with the right to change rules."""
    return docker("run", "--rm", "--network", f"container:{PREFIX}-pod", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN",
                  engine.images(lambda _: None, ["observer"])["observer"], "sh", "-ec", script)  # fmt: skip


def test_a_second_loader_of_the_pod_is_refused_before_it_does_harm(pod: Lab) -> None:
    before = docker("inspect", "--format", "{{.State.StartedAt}}", f"{PREFIX}-loader")
    with pod.counted() as added:
        done = process.run("docker", "exec", f"{PREFIX}-loader", "python3", "-m", "interception.ebpf", timeout_s=20)
        assert attached() == ["outbound", "inbound", "dns"]
    assert (done.code, done.out) == (3, "")
    assert "port 15099 for the page of counters is taken" in done.err
    assert added == {"redirect_tcp": 1, "handed_over": 1, "inbound_tcp": 1, "redirect_dns_udp": 1}
    assert docker("inspect", "--format", "{{.State.StartedAt}}", f"{PREFIX}-loader") == before


def test_a_check_says_that_it_is_allowed_and_ends(pod: Lab) -> None:
    pod.loader("--check")
    try:
        assert docker("wait", f"{PREFIX}-loader") == "0"
        assert docker("logs", f"{PREFIX}-loader") == ""
        assert attached() == []
    finally:
        pod.remove("loader")


@pytest.mark.parametrize("capabilities", [(), ("--cap-add", "NET_ADMIN")])
def test_a_missing_capability_is_said_in_one_line(pod: Lab, capabilities: tuple[str, ...]) -> None:
    pod.loader(capabilities=capabilities)
    try:
        assert docker("wait", f"{PREFIX}-loader") == "3"
        done = process.run("docker", "logs", f"{PREFIX}-loader", timeout_s=10)
        assert done.out == ""
        assert len(done.err.splitlines()) == 1
        assert "the kernel refuses bpf(): the loader needs CAP_SYS_ADMIN" in done.err
    finally:
        pod.remove("loader")
