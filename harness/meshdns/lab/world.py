"""The world from Kubernetes manifests: Pods with Istio's annotations and a few of ours, Services, ServiceEntries.

Ours begin with `meshdns/`; Istio's that are not honoured here are refused, as are ours that are not known. The place
that runs the pods plays the node, so a Pod's address is its `status.podIP`, on the default networks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from meshdns.core import errors, paths
from meshdns.core.world import CORE, Answer, Manifest, Nets, Pod, Service, World, search
from meshdns.istio import documents
from meshdns.istio.documents import Document, Value
from meshdns.istio.faults import Fault, Place, refuse
from meshdns.lab import parts
from meshdns.lab.parts.component import ClusterDns

SHIPPED = paths.COMPOSE / "worlds"
OURS, STATIC = "meshdns/", "static"
SYSTEM, DNS = "kube-system", "kube-dns"  # Services of this namespace are cluster DNSes; the usual one
_INJECT, _PROXY, _INTERCEPTION = (
    "sidecar.istio.io/inject", "proxy.istio.io/config", "sidecar.istio.io/interceptionMode",
)  # fmt: skip
_TRUTH = ("true", "false")
_MODES = {"REDIRECT": "iptables", "TPROXY": "tproxy"}
# Annotation of a Pod -> the values it may have; none: any word.
_POD: dict[str, tuple[str, ...]] = {
    "arm": (), "backend": (), "group": (),
    "config": (STATIC, "xds"),  # what configures its sidecar: a bootstrap, or the control plane
    "dns": ("cluster", "envoy"),  # who answers port 53; Istio's agent is asked for by its own annotation
    "mechanism": ("iptables", "nftables", "ebpf"),
    "resolver": ("c-ares", "getaddrinfo", "hickory"),
    "loop-guard": _TRUTH, "virtual-ips": _TRUTH, "answers": _TRUTH, "outside": _TRUTH, "ready": _TRUTH,
}  # fmt: skip
_SERVICE: dict[str, tuple[str, ...]] = {
    "backend": (), "virtual-ip": (), "headless": (), "served-by": (), "config": (STATIC, "xds"),
}  # fmt: skip
_ALLOWED = {"Pod": _POD, "Service": _SERVICE, "ServiceEntry": _SERVICE}
_ISTIO = {"Pod": (_INJECT, _PROXY, _INTERCEPTION)}
_KINDS = ("Namespace", "ConfigMap", "Pod", "Service", "EndpointSlice", "ServiceEntry")  # understood; others pass
_SETTINGS = (
    "domain", "cluster-ips", "virtual-ips", "unroutable", "entry-address", "external-name", "lookup", "record-ttl-s",
    "probe-period-s",
)  # fmt: skip


@dataclass(frozen=True)
class _Read:
    """One document, and where it stands."""

    document: Document
    tree: dict[str, Any]
    faults: list[Fault]

    @property
    def kind(self) -> str:
        return str(self.tree.get("kind", ""))

    @property
    def name(self) -> str:
        return str(self.tree.get("metadata", {}).get("name", ""))

    @property
    def namespace(self) -> str:
        return str(self.tree.get("metadata", {}).get("namespace", "default"))

    @property
    def spec(self) -> dict[str, Any]:
        return self.tree.get("spec") or {}

    def line(self, *path: str) -> int:
        """Where a field stands, or the nearest thing around it."""
        value = self.document.root
        for key in path:
            if not isinstance(value.data, dict) or key not in value.data:
                break
            value = value.data[key]
        return value.line

    def fault(self, fact: str, step: str, *path: str) -> None:
        place = Place(self.document.file, self.document.number, self.line(*path))
        self.faults.append(Fault(place, ".".join(path), fact, step))

    def notes(self) -> dict[str, str]:
        """Its annotations, ours without their prefix; those that nobody honours are faults."""
        found: dict[str, str] = {}
        known = _ALLOWED.get(self.kind, {})
        for key, value in (self.tree.get("metadata", {}).get("annotations") or {}).items():
            at = ("metadata", "annotations", key)
            ours = key.removeprefix(OURS)
            if not isinstance(value, str):
                self.fault(f"{value!r} is not text", "put it in quotes", *at)
            elif key.startswith(OURS) and ours not in known:
                have = ", ".join(f"{OURS}{one}" for one in known) or "none"
                self.fault(f"a {self.kind} has no annotation {key}", f"known: {have}", *at)
            elif key.startswith(OURS) and known[ours] and value not in known[ours]:
                self.fault(f"{key} is {value!r}", f"choose from {', '.join(known[ours])}", *at)
            elif key.partition("/")[0].endswith("istio.io") and key not in _ISTIO.get(self.kind, ()):
                have = ", ".join(_ISTIO.get(self.kind, ())) or "none"
                self.fault(f"{key} is not honoured here", f"leave it out; honoured: {have}", *at)
            else:
                found[ours] = value
        return found


@functools.cache
def shipped() -> World:
    """The world that comes with the package."""
    return read([SHIPPED])


def read(paths: Sequence[Path]) -> World:
    """The world in files, or in the files of folders, in the order of their names. InputError names every fault."""
    faults: list[Fault] = []
    found: list[_Read] = []
    for path in (file for given in paths for file in _files(given)):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise errors.InputError(f"cannot be read ({why})", place=str(path), step="name a world file") from None
        for document in documents.parse(text, str(path), faults):
            tree = _plain(document.root)
            if isinstance(tree, dict):
                found.append(_Read(document, tree, faults))
            else:
                faults.append(Fault(Place(str(path), document.number), "", "is not a manifest", "write a mapping"))
    refuse(faults)
    world = _Builder(found, faults).build()
    refuse(faults)
    return world


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise errors.InputError("holds no world file", place=str(path), step="name one ending in .yaml")
    return files


def _plain(value: Value) -> Any:
    """Without the lines."""
    data = value.data
    if isinstance(data, dict):
        return {key: _plain(child) for key, child in data.items()}
    return [_plain(child) for child in data] if isinstance(data, tuple) else data


class _Builder:
    """Documents to a world; what is wrong with them is kept as faults."""

    def __init__(self, found: Sequence[_Read], faults: list[Fault]) -> None:
        self.found, self.faults = found, faults
        self.pods: dict[str, Pod] = {}
        self.dns = {str(one.spec.get("clusterIP")): one for one in self.of("Service") if one.namespace == SYSTEM}
        self.search: tuple[str, ...] = ()  # of every pod's resolv.conf

    def of(self, *kinds: str) -> Iterator[_Read]:
        return (one for one in self.found if one.kind in kinds)

    def build(self) -> World:
        settings = next((one for one in self.of("ConfigMap") if one.name == "meshdns"), None)
        usual = next((address for address, one in self.dns.items() if one.name == DNS), "")
        if settings is None or not usual:
            what = "ConfigMap meshdns" if settings is None else f"Service {SYSTEM}/{DNS}"
            place = self.found[0].document.file if self.found else "an empty world"
            step = "take it from compose/worlds, where it stands with what it means"
            raise errors.InputError(f"the world has no {what}", place=place, step=step)
        data = {key: str(value) for key, value in (settings.tree.get("data") or {}).items()}
        for key in _SETTINGS:
            if key not in data:
                settings.fault(f"{key} is missing", "add it", "data")
        for key in data:
            if key not in _SETTINGS and not key.startswith("answer."):
                settings.fault(f"{key} is no setting", f"known: {', '.join(_SETTINGS)}, answer.NAME", "data", key)
        refuse(self.faults)
        self.search = search(settings.namespace, data["domain"])
        for one in self.of("Pod"):
            self._add_pod(one)
        refuse(self.faults)
        wanted = [
            "world-dns",
            "observer",
            *(["control-plane"] if any(p.governed for p in self.pods.values()) else []),
        ]
        for name in wanted:
            if name not in self.pods:
                settings.fault(f"the world has no Pod {name}", "take it from compose/worlds", "metadata", "name")
        if not any(pod.arm for pod in self.pods.values()):
            settings.fault("no Pod is an arm", f"give one the annotation {OURS}arm", "metadata", "name")
        refuse(self.faults)
        answering = dict(self._cluster_dns())
        refuse(self.faults)
        services = tuple(self._services(settings.namespace, data["domain"]))
        self._once(services)
        if data["lookup"] not in {service.name for service in services}:
            settings.fault(f"there is no Service {data['lookup']}", "name one of this world", "data", "lookup")
        return World(
            namespace=settings.namespace,
            domain=data["domain"],
            cluster_ips=data["cluster-ips"],
            virtual_ips=data["virtual-ips"],
            unroutable=data["unroutable"],
            dns_cluster_ip=usual,
            entry_address=data["entry-address"],
            external_name=data["external-name"],
            lookup=data["lookup"],
            record_ttl_s=int(data["record-ttl-s"]),
            probe_period_s=float(data["probe-period-s"]),
            pods=tuple(self.pods.values()),
            services=services,
            answers=dict(_answers(settings, data)),
            manifests=tuple(Manifest(Path(one.document.file).name, one.tree) for one in self.found),
            cluster_dns=answering,
        )

    # -- pods --------------------------------------------------------------------------------------------------------

    def _add_pod(self, one: _Read) -> None:
        notes = one.notes()
        network, host = _place(one)
        if one.name in self.pods:
            one.fault(f"there are two Pods {one.name}", "rename one", "metadata", "name")
        if any((network, host) == (pod.network, pod.host) for pod in self.pods.values()):
            one.fault("another Pod has this address", "give it one of its own", "status", "podIP")
        if any(notes.get("arm") == pod.arm for pod in self.pods.values() if pod.arm):
            one.fault(f"the arm {notes['arm']} is there already", "rename one", "metadata", "annotations", f"{OURS}arm")
        containers = one.spec.get("containers") or [{}]
        made_of, sidecar = tuple(_part(one, each) for each in containers), notes.get(_INJECT) == "true"
        if len(made_of) > 1 and (sidecar or "arm" in notes):
            one.fault("a Pod that is an arm or has a sidecar has one container here", "leave one", "spec", "containers")
        self.pods[one.name] = Pod(
            pod=one.name,
            host=host,
            part=made_of[0],
            parts=made_of if len(made_of) > 1 else (),
            network=network,
            group=notes.get("group", CORE),
            arm=notes.get("arm", ""),
            backend=notes.get("backend", ""),
            sidecar=sidecar,
            dns="agent" if _captures_dns(one, notes) else notes.get("dns", "cluster"),
            mechanism=_mechanism(one, notes),
            guarded=notes.get("loop-guard") != "false",
            virtual_ips=notes.get("virtual-ips") == "true",
            resolver=notes.get("resolver", "c-ares"),
            answers=notes.get("answers") == "true",
            governed=sidecar and notes.get("config") != STATIC,
            outside=notes.get("outside") == "true",
            name_server=self._name_server(one),
            ready=notes.get("ready") != "false",
            ports=tuple(port["containerPort"] for port in containers[0].get("ports") or ()),
        )

    def _name_server(self, one: _Read) -> str:
        """The cluster DNS that its resolv.conf names; empty where it is the usual one."""
        config = one.spec.get("dnsConfig")
        if config is None:
            return ""
        [named] = config.get("nameservers") if len(config.get("nameservers") or ()) == 1 else [""]
        resolv_conf = {"searches": list(self.search), "options": [{"name": "ndots", "value": "5"}]}
        if (
            named in self.dns
            and config == {"nameservers": [named], **resolv_conf}
            and one.spec.get("dnsPolicy") == "None"
        ):
            return "" if self.dns[named].name == DNS else str(named)
        have = ", ".join(f"{address} ({each.name})" for address, each in self.dns.items())
        step = f"set dnsPolicy to None, and give one of {have} with the searches and ndots that other pods have"
        one.fault("its name server is not honoured here", step, "spec", "dnsConfig")
        return ""

    def _cluster_dns(self) -> Iterator[tuple[str, str]]:
        """ClusterIP -> the pod that answers there; one of its parts can say how often it was asked, and by whom."""
        slices = self._slices()
        for address, one in self.dns.items():
            endpoints = slices.get((one.namespace, one.name))
            behind = [self.pods[pod] for pod, _ in self._replicas(endpoints)] if endpoints else []
            if len(behind) != 1:
                one.fault(f"{len(behind)} pods answer for it", "give it an EndpointSlice with one", "metadata", "name")
            elif not any(isinstance(parts.ALL[part], ClusterDns) for part in behind[0].parts or (behind[0].part,)):
                have = ", ".join(name for name, each in parts.ALL.items() if isinstance(each, ClusterDns))
                fact = f"no container of {behind[0].pod} counts the queries of pods"
                one.fault(fact, f"add a part that does: {have}", "metadata", "name")
            else:
                yield address, behind[0].pod

    # -- services ----------------------------------------------------------------------------------------------------

    def _services(self, namespace: str, domain: str) -> Iterator[Service]:
        slices = self._slices()
        named: dict[str, Service] = {}
        for one in self.of("Service"):
            if one.namespace != SYSTEM:
                named[one.name] = self._service(one, slices.get((one.namespace, one.name)), domain)
        yield from (each for each in named.values() if not each.governed)
        for pod in self.pods.values():
            if pod.backend:
                yield Service(
                    name=pod.pod,
                    host=f"{pod.pod}.{namespace}.svc.{domain}",
                    backend=pod.backend,
                    replicas={pod.pod: pod.host},
                    meshed=pod.sidecar,
                    ports=(80, 443)[: len(pod.ports)],
                    target_ports=pod.ports,
                    by_address=True,
                )
        yield from (each for each in named.values() if each.governed)
        for one in self.of("ServiceEntry"):
            yield self._entry(one, {each.host: each for each in named.values()})

    def _slices(self) -> dict[tuple[str, str], _Read]:
        """EndpointSlices by the Service that they are of."""
        labels = ((one, one.tree["metadata"].get("labels") or {}) for one in self.of("EndpointSlice"))
        return {(one.namespace, str(those.get("kubernetes.io/service-name"))): one for one, those in labels}

    def _service(self, one: _Read, endpoints: _Read | None, domain: str) -> Service:
        notes, ports = one.notes(), one.spec.get("ports") or ()
        for port in ports:
            if not port.get("name"):
                one.fault("a port has no name, so its protocol is not known", "name it, e.g. http", "spec", "ports")
        replicas = dict(self._replicas(endpoints)) if endpoints else {}
        address = str(one.spec.get("clusterIP", ""))
        return Service(
            name=one.name,
            host=f"{one.name}.{one.namespace}.svc.{domain}",
            backend=notes.get("backend", ""),
            cluster_ip="" if address == "None" else address,
            virtual_ip=notes.get("virtual-ip", ""),
            replicas=replicas,
            headless=notes.get("headless", ""),
            meshed=self._meshed(replicas),
            governed=notes.get("config") != STATIC,
            ports=tuple(int(port["port"]) for port in ports),
            target_ports=tuple(int(port.get("targetPort", port["port"])) for port in ports),
            watched=address not in ("", "None"),
        )

    def _replicas(self, endpoints: _Read) -> Iterator[tuple[str, int]]:
        """Ready endpoints, by the pods that have their addresses."""
        there = {Nets().pod(pod.host): pod for pod in self.pods.values() if pod.network == "pods"}
        for endpoint in endpoints.tree.get("endpoints") or ():
            target = endpoint.get("targetRef")
            if target and not target.get("namespace"):
                step = "add it: without it Istio waits for the pod for ever"
                endpoints.fault(f"the reference to {target.get('name')} has no namespace", step, "endpoints")
            for address in endpoint.get("addresses") or ():
                if address not in there:
                    endpoints.fault(f"no Pod has the address {address}", "correct it, or add the Pod", "endpoints")
                elif (endpoint.get("conditions") or {}).get("ready", True):
                    yield there[address].pod, there[address].host

    def _entry(self, one: _Read, services: Mapping[str, Service]) -> Service:
        notes = one.notes()
        behind = [services.get(str(each.get("address"))) for each in one.spec.get("endpoints") or ()]
        replicas = {pod: host for each in behind if each for pod, host in each.replicas.items()}
        served = notes.get("served-by", "")
        if served and served not in self.pods:
            one.fault(f"there is no Pod {served}", "name one", "metadata", "annotations", f"{OURS}served-by")
        ports = tuple(int(port["number"]) for port in one.spec.get("ports") or ())
        resolved = one.spec.get("resolution") == "DNS" and bool(replicas)
        return Service(
            name=one.name,
            host=str((one.spec.get("hosts") or [""])[0]),
            backend=notes.get("backend", ""),
            replicas=replicas,
            meshed=self._meshed(replicas),
            governed=notes.get("config") != STATIC,
            ports=ports,
            target_ports=tuple(int(port.get("targetPort", port["number"])) for port in one.spec.get("ports") or ()),
            external=True,
            served_by=served,
            resolved=resolved,
            watched=resolved,
        )

    def _meshed(self, replicas: Mapping[str, int]) -> bool:
        return any(self.pods[name].sidecar for name in replicas)

    def _once(self, services: Sequence[Service]) -> None:
        words = [service.backend for service in services if service.backend]
        for word in sorted({word for word in words if words.count(word) > 1}):
            one = next(each for each in self.found if each.notes().get("backend") == word)
            one.fault(f"two things have the backend {word}", "rename one", "metadata", "annotations", f"{OURS}backend")


def _part(one: _Read, container: Mapping[str, Any]) -> str:
    """What a container is: the part that has its name, or that of its image."""
    image = str(container.get("image", "")).rpartition("/")[2].partition(":")[0]
    name = next((each for each in (str(container.get("name", "")), image) if each in parts.ALL), "")
    if name:
        if (stage := parts.ALL[name].image) not in parts.stages():
            fact, step = f"the image {stage} of the part {name} cannot be built", "add it to compose/images/Dockerfile"
            one.fault(fact, step, "spec", "containers")
        return name
    step = f"known: {', '.join(parts.ALL)}, as the container's name or image meshdns/PART"
    one.fault(f"{image or 'nothing'} is no part of a testbed", step, "spec", "containers")
    return ""


def _place(one: _Read) -> tuple[str, int]:
    """Network and host number, from the address on the default networks."""
    address = str((one.tree.get("status") or {}).get("podIP", ""))
    front, _, last = address.rpartition(".")
    nets = {Nets().pods: "pods", Nets().world: "world"}
    if front in nets and last.isdecimal() and 2 <= int(last) <= 254:
        return nets[front], int(last)
    step = f"give it one in {' or '.join(Nets().cidrs())}; the networks of a testbed may be others"
    one.fault(f"{address or 'nothing'} is not an address of the testbed", step, "status", "podIP")
    return "pods", 0


def _captures_dns(one: _Read, notes: Mapping[str, str]) -> bool:
    """Whether Istio's annotation asks for the agent's DNS proxy."""
    try:
        config = yaml.safe_load(notes.get(_PROXY, "")) or {}
        metadata = config.get("proxyMetadata") or {}
        unknown = {*config} - {"proxyMetadata"} | {*metadata} - {"ISTIO_META_DNS_CAPTURE"}
    except (yaml.YAMLError, AttributeError):
        unknown, metadata = {"this"}, {}
    if unknown:
        fact = f"{', '.join(sorted(map(str, unknown)))} is not honoured here"
        step = "honoured: proxyMetadata with ISTIO_META_DNS_CAPTURE"
        one.fault(fact, step, "metadata", "annotations", _PROXY)
    return str(metadata.get("ISTIO_META_DNS_CAPTURE", "false")).lower() == "true"


def _mechanism(one: _Read, notes: Mapping[str, str]) -> str:
    mode = notes.get(_INTERCEPTION, "REDIRECT")
    if mode not in _MODES:
        path = ("metadata", "annotations", _INTERCEPTION)
        one.fault(f"{mode} is not honoured here", f"choose from {', '.join(_MODES)}", *path)
    return notes.get("mechanism", _MODES.get(mode, "iptables"))


def _answers(settings: _Read, data: Mapping[str, str]) -> Iterator[tuple[str, Answer]]:
    for key, value in data.items():
        if not key.startswith("answer."):
            continue
        address, _, port = value.rpartition(":")
        if not address or not port.isdecimal():
            settings.fault(f"{value!r} is not an address with a port", "e.g. 10.96.1.20:80", "data", key)
            continue
        usual = f"{Nets().pods}."
        where = "{own}" if address == "own" else address.replace(usual, "{pods}.") if usual in address else address
        yield key.removeprefix("answer."), Answer(where, int(port))
