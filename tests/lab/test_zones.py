"""Zone files for what Kubernetes' DNS would answer; what a name server then answers is asked in tests/testbed."""

from __future__ import annotations

from pathlib import Path

import dns.zone

from meshdns.core.world import Nets, World
from meshdns.lab import parts, world, zones
from meshdns.lab.parts.component import At, Secrets
from shipped import WORLD

ELSEWHERE = Nets("198.18.7", "198.19.7")
# Called by the pods' own hostnames, at another port than the Service says; one is not ready.
SET = """
apiVersion: v1
kind: Service
metadata: {name: set, namespace: shop}
spec: {clusterIP: None, ports: [{name: tcp, port: 5432, targetPort: 8080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: set, namespace: shop, labels: {kubernetes.io/service-name: set}}
addressType: IPv4
ports: [{name: tcp, port: 8080}]
endpoints:
- {addresses: [198.18.0.21], hostname: set-0, conditions: {ready: true}}
- {addresses: [198.18.0.22], hostname: set-1, conditions: {ready: true}}
- {addresses: [198.18.0.23], hostname: set-2, conditions: {ready: false}}
"""


def told(world_: World, name: str, rtype: str) -> list[str]:
    """Data of a name, relative to the domain, in a testbed on other networks."""
    zone = dns.zone.from_text(zones.cluster(world_, ELSEWHERE, 30), check_origin=False)
    found = zone.get_rdataset(name, rtype)
    return sorted(each.to_text() for each in found or ())


def with_set(folder: Path) -> World:
    (folder / "set.yaml").write_text(SET)
    return world.read([world.SHIPPED, folder / "set.yaml"])


def test_a_headless_service_has_its_ready_pods_by_their_hostnames(tmp_path: Path) -> None:
    both = with_set(tmp_path)
    assert told(both, "set.shop.svc", "A") == ["198.18.7.21", "198.18.7.22"]
    assert [told(both, f"set-{n}.set.shop.svc", "A") for n in range(3)] == [["198.18.7.21"], ["198.18.7.22"], []]
    assert told(both, "_tcp._tcp.set.shop.svc", "SRV") == [f"0 50 8080 set-{n}.set.shop.svc" for n in range(2)]
    assert "21.7.18.198 IN PTR set-0.set.shop.svc.cluster.local.\n" in zones.reverse(both, ELSEWHERE, 30)


def test_a_service_with_an_address_is_told_by_it_and_its_own_port() -> None:
    assert told(WORLD, "web.shop.svc", "A") == [WORLD.looked_up.cluster_ip]
    assert told(WORLD, "_http._tcp.web.shop.svc", "SRV") == ["0 100 80 web.shop.svc"]
    assert told(WORLD, "198-18-7-21.web.shop.svc", "A") == ["198.18.7.21"]


def test_services_are_there_with_their_group_alone() -> None:
    [shop] = WORLD.of({"shop"}).backends["shop"].hosts[:1]
    assert told(WORLD.of({"shop"}), "shop-headless.shop.svc", "A")[0] == f"198.18.7.{shop}"
    assert told(WORLD.of(()), "shop-headless.shop.svc", "A") == told(WORLD.of(()), "shop.shop.svc", "A") == []


def corefile(pod: str) -> tuple[At, list[str]]:
    found = parts.of(WORLD, Nets(), WORLD.named(pod), keys=Secrets("console", "web"))
    [at] = [each for each in found if each.part.image == "coredns"]
    return at, at.part.files(at)[f"{at.service}/Corefile"].splitlines()


def test_a_corefile_is_as_the_configmap_has_it_but_for_its_plugin_kubernetes() -> None:
    at, lines = corefile("dns")
    given = at.world.configuration(at.pod.pod, "Corefile").splitlines()
    begin = next(n for n, line in enumerate(given) if "kubernetes" in line)
    end = given.index("    }", begin) + 1
    assert lines[:begin] == given[:begin]
    assert lines[begin].startswith("    file /etc/coredns/cluster.zone cluster.local")
    rest = given[end:]
    assert lines[-len(rest) :] == rest


def test_each_cluster_dns_has_the_ttl_and_the_cache_of_its_own_corefile() -> None:
    assert any("cache 30" in line for line in corefile("dns-cache")[1])
    assert not any("cache" in line for line in corefile("dns-nocache")[1])
    assert "$TTL 30\n" in zones.cluster(WORLD, Nets(), 30)
