"""A part says all of itself in its module; whatever has only a half is refused, here or when a world is read."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml

from meshdns import store
from meshdns.core import errors, paths
from meshdns.core.progress import Progress
from meshdns.core.world import LIVE, Nets, World
from meshdns.lab import newkeys, parts, recording, world
from meshdns.lab.compose import testbed
from meshdns.lab.parts import coredns, istiod
from meshdns.lab.parts.component import At, Component, NameServer, Secrets
from meshdns.lab.parts.istio_proxy import handed
from meshdns.measure import plan, run
from recording import Recording
from shipped import WORLD

KEYS = Secrets("console", "web", newkeys.made())
EVERY = [at for there in (WORLD.of(()), WORLD.of(WORLD.groups | {LIVE})) for pod in there.pods for at in
         parts.of(there, Nets(), pod, keys=KEYS)]  # fmt: skip


@pytest.mark.parametrize("name", parts.ALL)
def test_a_part_is_whole(name: str) -> None:
    part = parts.ALL[name]
    assert isinstance(part, Component)
    assert not inspect.isabstract(type(part))
    assert part.image in parts.stages()
    assert any(at.part is part for at in EVERY), "no pod of the shipped world is made of it"


def test_every_image_is_somebodys() -> None:
    assert {part.image for part in parts.ALL.values()} | testbed._ATTACHED == {*parts.stages()}


@pytest.mark.parametrize("at", EVERY, ids=lambda at: f"{at.service}{'-live' * at.world.live}")
def test_what_a_container_mounts_is_there(at: At) -> None:
    near = [each for each in EVERY if each.pod == at.pod or each.service == "client-ip-app"]
    own = {path for each in near for path in each.part.files(each)}
    own |= (
        {handed(at.service, folder) for folder in ("tokens/istio-token", "istio/root-cert.pem")}
        if at.world.live
        else set()
    )
    for mount in at.part.container(at).mounts:
        kind, _, name = mount.source.partition("/")
        there = {"files": [name] if (paths.COMPOSE / name).exists() else [], "state": own, "volume": [name]}
        assert kind == "cgroup2" or any(path == name or path.startswith(f"{name}/") for path in there[kind]), mount


def test_half_a_part_is_none() -> None:
    class Silent(NameServer):
        image = "dns"

    with pytest.raises(TypeError, match=r"abstract method .?container"):
        Silent()


def test_a_part_without_an_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.ALL["dnsdist"], "image", "toaster")
    with pytest.raises(errors.InputError, match=r"dns.yaml.*the image toaster of the part dnsdist cannot be built"):
        world.read([world.SHIPPED])


# -- another cluster DNS ---------------------------------------------------------------------------------------------

OTHER = """
apiVersion: v1
kind: Service
metadata: {name: other-dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.91
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: other-dns, namespace: kube-system, labels: {kubernetes.io/service-name: other-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
endpoints: [{addresses: [198.18.0.91]}]
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, annotations: {meshdns/outside: "true", meshdns/group: other}}
spec:
  containers: [{name: coredns, image: meshdns/coredns}, {name: dnsdist, image: meshdns/dns}]
  volumes: [{name: config-volume, configMap: {name: coredns}}]
status: {podIP: 198.18.0.91}
---
apiVersion: v1
kind: Pod
metadata:
  name: client-elsewhere
  namespace: shop
  annotations: {meshdns/arm: elsewhere, sidecar.istio.io/inject: "true"}
spec:
  dnsPolicy: None
  dnsConfig:
    nameservers: [10.96.0.91]
    searches: [shop.svc.cluster.local, svc.cluster.local, cluster.local]
    options: [{name: ndots, value: "5"}]
  containers: [{name: app, image: meshdns/client}]
status: {podIP: 198.18.0.92}
"""
PLAN = """
name = "two"
seed = 1
blocks = 1
[[experiment]]
name = "lookup"
arm = ["plain", "elsewhere"]
dns_delay_ms = [0, 5]
rate_hz = 100
count = 4
"""


def with_other(folder: Path, old: str = "", new: str = "") -> World:
    assert old in OTHER
    (folder / "mine.yaml").write_text(OTHER.replace(old, new))
    return world.read([world.SHIPPED, folder / "mine.yaml"])


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Istio's answers for that arm: none."""
    kept = recording.read()
    monkeypatch.setattr(
        recording, "read", lambda: dataclasses.replace(kept, nodes={**kept.nodes, "client-elsewhere": {}})
    )


def test_an_arm_that_nothing_was_recorded_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=r"^client-elsewhere: was not recorded; .*meshdns record"):
        Recording(world=with_other(tmp_path)).up(lambda _: None)


@pytest.mark.usefixtures("recorded")
def test_an_arm_may_have_a_cluster_dns_of_its_own(tmp_path: Path) -> None:
    both = with_other(tmp_path)
    place = Recording(plan.parse(PLAN, "two", both).groups(), world=both)
    assert place.groups == {"other"}
    place.up(lambda _: None)
    folder = run.execute(plan.parse(PLAN, "two", both), place, tmp_path / "runs", Progress(1, "test"))
    own = {"plain": {"dns-coredns", "dns-dnsdist"}, "elsewhere": {"other-coredns", "other-dnsdist"}}
    for record in store.records(folder):
        assert record.valid, record.reasons
        arm = record.parameters["arm"]
        assert record.counters["dnsdist/from_pod"] == record.counters["pod/rule/dns_client"] > 0
        assert {each for each in record.cpu_us if "coredns" in each or "dnsdist" in each} == own[arm]
    delayed = {asked[1] for asked in place.asked if asked[:1] == ("exec",) and "delay_ms=5" in asked}
    assert delayed == {"dns-dnsdist", "other-dnsdist"}
    assert "nameserver 10.96.0.91\n" in place.files["client-elsewhere/resolv.conf"]
    sidecar = yaml.safe_load(place.files["compose.yaml"])["services"]["client-elsewhere-istio-proxy"]
    assert "${MESHDNS_STATE}/client-elsewhere/resolv.conf:/etc/resolv.conf:ro" in sidecar["volumes"]
    assert "other-dnsdist" in sidecar["depends_on"]
    assert store.load(folder).world.dns_pod(both.arms["elsewhere"]).pod == "other"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "{name: coredns, image: meshdns/coredns}, {name: dnsdist, image: meshdns/dns}",
            "{name: null-target, image: meshdns/observer}",
            "no container of other is a name server",
        ),
        ("name: dnsdist", "name: toaster", "dns is no part of a testbed"),
        ("configMap: {name: coredns}", "emptyDir: {}", "none of its volumes is a ConfigMap with Corefile"),
        ("[10.96.0.91]", "[10.96.0.92]", "name server is not honoured here; .* 10.96.0.91 .other-dns."),
        ("dnsPolicy: None", "dnsPolicy: Default", "name server is not honoured here; set dnsPolicy to None"),
        ('value: "5"', 'value: "2"', "name server is not honoured here; .* ndots that other pods have"),
        ("endpoints: [{addresses: [198.18.0.91]}]", "endpoints: []", "0 pods answer for it"),
    ],
)
def test_half_a_cluster_dns_is_refused(old: str, new: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match=rf"mine.yaml.*{said}"):
        with_other(tmp_path, old, new)


def test_a_delay_needs_somebody_before_the_cluster_dns_who_brings_it_about(tmp_path: Path) -> None:
    alone = with_other(tmp_path, ", {name: dnsdist, image: meshdns/dns}")
    table = {"name": "x", "arm": ["elsewhere"], "rate_hz": 10.0, "dns_delay_ms": 5.0}
    with pytest.raises(errors.InputError, match="dns_delay_ms needs a cluster DNS with the part dnsdist"):
        plan.from_json({"name": "x", "seed": 1, "blocks": 1, "experiment": [table]}, "my.toml", alone)


def test_a_live_cluster_dns_asks_the_api_server_and_has_its_corefile_as_it_stands() -> None:
    there = dataclasses.replace(WORLD, live=True)
    [at] = [at for at in parts.of(there, Nets(), there.dns_pod(), keys=KEYS) if at.part is coredns.PART]
    files = {name.rpartition("/")[2]: text for name, text in at.part.files(at).items()}
    told = "       kubeconfig /etc/coredns/kubeconfig meshdns\n"
    assert told in files[coredns.COREFILE]
    assert files[coredns.COREFILE].replace(told, "") == at.world.configuration(at.pod.pod, coredns.COREFILE)
    assert "https://198.19.128." in files["kubeconfig"]
    assert not [name for name in files if name.endswith(".zone")]


def test_istiod_reads_what_a_plan_sets_and_nothing_else_by_default() -> None:
    assert istiod.settings("plane-istiod", istiod.USUAL) == {"plane-istiod/settings": ""}
    written = {each: istiod.settings("plane-istiod", each)["plane-istiod/settings"] for each in istiod.DEBOUNCE}
    assert len({*written.values()}) == len(written)
    assert written["1ms"] == "export PILOT_DEBOUNCE_AFTER=1ms\n"
    [at] = [each for each in EVERY if each.part is istiod.PART and each.world.live]
    assert istiod.PART.files(at)[f"{at.service}/settings"] == ""
    assert ". /keys/settings && exec" in " ".join(istiod.PART.container(at).entrypoint)
