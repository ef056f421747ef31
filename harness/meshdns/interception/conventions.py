"""One mesh as one value: its ports, users, marks and chain names, and in what its rules differ from Istio's.

Another mesh is another value here. Given is what the fixtures of its own rule generator confirm packet by packet
(docs/conventions.md); `lacks` names the options that none of them confirms, which are refused.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chains:
    """Chain names by what they are for; an empty one is not there: what would jump to it does itself what it does."""

    inbound: str
    output: str
    redirect: str = ""
    in_redirect: str = ""
    output_dns: str = ""
    divert: str = ""  # from here on TPROXY's and those of options that only Istio has
    tproxy: str = ""
    drop: str = ""
    output_tproxy: str = ""
    output_mark: str = ""
    in_output_tproxy: str = ""

    def names(self) -> frozenset[str]:
        """All that are there."""
        return frozenset(vars(self).values()) - {""}


_OF_DNS = frozenset({"redirect_dns", "capture_all_dns", "dns_port", "dns_servers_v4", "dns_servers_v6"})
_ISTIO_ALONE = frozenset({
    "inbound_tunnel_port", "inbound_interception_mode", "inbound_tproxy_mark", "inbound_tproxy_route_table",
    "outbound_ports_include", "outbound_ip_ranges_include", "reroute_virtual_interfaces", "exclude_interfaces",
    "owner_groups_include", "owner_groups_exclude", "host_ipv4_loopback_cidr", "drop_invalid",
})  # fmt: skip


@dataclass(frozen=True)
class Conventions:
    """A port or mark of 0, and a group or address that is empty, is one that the mesh has not."""

    name: str
    title: str
    outbound_port: int
    inbound_port: int
    uid: int  # the proxy runs as: its own packets are never captured
    gid: str
    chains: Chains
    outbound: tuple[str, ...]  # what its output chain asks, in its order: `_Builder` has a method for each
    lacks: frozenset[str]  # options that keep their default
    opt_in: bool = False  # its generator captures nothing unless told to
    dns_defaults: tuple[tuple[str, object], ...] = ()  # where redirected queries went
    may_be_empty: frozenset[str] = frozenset()  # owners that need not be named; Istio takes its users for its groups
    dns_port: int = 0
    dns_protocols: tuple[str, ...] = ("tcp", "udp")  # that go to the DNS port; queries by the other pass
    dns_spares_proxy: bool = False  # the proxy's own queries pass, where DNS is asked about before the proxy's users
    self_calls: bool = False  # the proxy's calls to its own pod come in by the inbound port; others' on lo pass
    port_ranges: bool = False  # lists of ports may hold "6000-8000"
    lists_subtract: bool = False  # excluded inbound ports count beside a list of included ones too
    excluded_inbound: tuple[int, ...] = ()  # what injects its sidecar excludes these
    tunnel_port: int = 0  # never captured inbound
    admin_port: int = 0
    stats_port: int = 0
    status_port: int = 0  # of the agent beside the proxy
    ready_port: int = 0  # of the proxy's readiness, for whoever asks from outside
    passthrough_v4: str = ""  # where the proxy's inbound side connects to the application from; never captured again
    passthrough_v6: str = ""
    mark: int = 0  # inbound TPROXY
    route_table: int = 0
    self_mark: int = 0  # proxy -> own pod, in TPROXY mode
    output_mark: int = 0  # outbound TPROXY: packets on their way back in by lo
    proxy_zone: int = 0  # conntrack zones of UDP DNS: proxy <-> resolver, application <-> proxy
    application_zone: int = 0

    def injected(self) -> dict[str, str]:
        """What is captured in a pod that gets the sidecar without further wishes."""
        return {
            "inbound_ports_include": "*",
            "inbound_ports_exclude": ",".join(map(str, self.excluded_inbound)),
            "outbound_ip_ranges_include": "*",
        }

    def options(self) -> dict[str, object]:
        """Its defaults of the options that depend on the mesh."""
        return {
            "conventions": self.name,
            "proxy_port": self.outbound_port,
            "inbound_capture_port": self.inbound_port,
            "inbound_tunnel_port": self.tunnel_port,
            "dns_port": self.dns_port,
            "proxy_uid": str(self.uid),
            "proxy_gid": self.gid,
            "inbound_tproxy_mark": str(self.mark),
            "inbound_tproxy_route_table": str(self.route_table),
            **({} if self.opt_in else self.injected()),
            **dict(self.dns_defaults),
        }

    def table(self, table: str) -> str:
        """Name of an nft table of family inet."""
        return f"{self.name}-proxy-{table}"


ISTIO = Conventions(
    name="istio",
    title="Istio",
    outbound_port=15001,
    inbound_port=15006,
    uid=1337,
    gid="1337",
    chains=Chains(
        "ISTIO_INBOUND", "ISTIO_OUTPUT", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT", "ISTIO_OUTPUT_DNS", "ISTIO_DIVERT",
        "ISTIO_TPROXY", "ISTIO_DROP", "ISTIO_OUTPUT_TPROXY", "ISTIO_OUTPUT_MARK", "ISTIO_IN_OUTPUT_TPROXY",
    ),
    outbound=(
        "excluded_ports", "passthrough", "owners", "owner_groups", "dns", "loopback", "excluded_ranges", "included",
    ),
    lacks=frozenset({"dns_port", "inbound_ip_ranges_exclude"}),
    opt_in=True,
    dns_port=15053,
    self_calls=True,
    excluded_inbound=(15020, 15021, 15090),  # agent, readiness, statistics
    tunnel_port=15008,  # HBONE
    admin_port=15000,
    stats_port=15090,
    status_port=15020,
    ready_port=15021,
    passthrough_v4="127.0.0.6",
    passthrough_v6="::6",
    mark=1337,
    route_table=133,
    self_mark=1338,
    output_mark=1339,
    proxy_zone=1,
    application_zone=2,
)  # fmt: skip

LINKERD = Conventions(
    name="linkerd",
    title="Linkerd",
    outbound_port=4140,
    inbound_port=4143,
    uid=2102,
    gid="2102",
    chains=Chains("PROXY_INIT_REDIRECT", "PROXY_INIT_OUTPUT"),
    outbound=("owners", "own_pod", "excluded_ports", "included"),
    lacks=_ISTIO_ALONE | _OF_DNS | {"outbound_ip_ranges_exclude"},
    may_be_empty=frozenset({"proxy_uid", "proxy_gid"}),
    port_ranges=True,
    lists_subtract=True,
    excluded_inbound=(4190, 4191),  # tap, the proxy's own page
    admin_port=4191,
)

KUMA = Conventions(
    name="kuma",
    title="Kuma",
    outbound_port=15001,
    inbound_port=15006,
    uid=5678,
    gid="",
    chains=Chains(
        "KUMA_MESH_INBOUND", "KUMA_MESH_OUTBOUND", "KUMA_MESH_OUTBOUND_REDIRECT", "KUMA_MESH_INBOUND_REDIRECT",
    ),
    outbound=("excluded_ranges", "dns", "excluded_ports", "passthrough", "owners", "loopback", "included"),
    lacks=_ISTIO_ALONE | {"capture_all_dns", "dns_servers_v4", "dns_servers_v6", "inbound_ports_include", "proxy_gid"},
    dns_defaults=(("capture_all_dns", True),),
    may_be_empty=frozenset({"proxy_gid"}),
    dns_port=15053,
    dns_protocols=("udp",),
    dns_spares_proxy=True,
    self_calls=True,
    passthrough_v4="127.0.0.6",
    passthrough_v6="::6",
    proxy_zone=1,
    application_zone=2,
)  # fmt: skip

CONSUL = Conventions(
    name="consul",
    title="Consul",
    outbound_port=15001,
    inbound_port=20000,
    uid=5995,
    gid="",
    chains=Chains(
        "CONSUL_PROXY_INBOUND", "CONSUL_PROXY_OUTPUT", "CONSUL_PROXY_REDIRECT", "CONSUL_PROXY_IN_REDIRECT",
        "CONSUL_DNS_REDIRECT",
    ),
    outbound=("dns", "excluded_ports", "excluded_ranges", "owners", "loopback", "included"),
    lacks=_ISTIO_ALONE | {
        "capture_all_dns", "dns_servers_v4", "dns_servers_v6", "inbound_ports_include", "inbound_ip_ranges_exclude",
        "proxy_gid",
    },
    dns_defaults=(("dns_servers_v4", ("127.0.0.1",)), ("dns_servers_v6", ("::1",))),
    may_be_empty=frozenset({"proxy_gid"}),
    dns_port=8600,
)  # fmt: skip

ALL = {mesh.name: mesh for mesh in (ISTIO, LINKERD, KUMA, CONSUL)}
