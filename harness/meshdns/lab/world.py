"""The world from Kubernetes manifests: Pods with Istio's annotations and a few of ours, Services, ServiceEntries.

Ours begin with `meshdns/`; Istio's that are not honoured here are refused, as are ours that are not known. The place
that runs the pods plays the node, so a Pod's address is its `status.podIP`, on the default networks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from meshdns.core import errors, paths
from meshdns.core.schema import Document, Fault, Field, Fields, is_address, refuse
from meshdns.core.world import CORE, Answer, Manifest, Nets, Pod, Service, World, search
from meshdns.interception import mechanisms
from meshdns.istio import documents
from meshdns.lab import parts
from meshdns.lab.parts import node_dns
from meshdns.lab.parts.component import NameServer
from meshdns.lab.parts.coredns import COREFILE

SHIPPED = paths.COMPOSE / "worlds"
OURS = "meshdns/"
SYSTEM, DNS = "kube-system", "kube-dns"  # Services of this namespace are cluster DNSes; the usual one
_INJECT, _PROXY, _INTERCEPTION, _EXCLUDED = (
    "sidecar.istio.io/inject", "proxy.istio.io/config", "sidecar.istio.io/interceptionMode",
    "traffic.sidecar.istio.io/excludeInboundPorts",
)  # fmt: skip
_CAPTURE = "ISTIO_META_DNS_CAPTURE"  # asks for the agent's DNS proxy
_TRUTH = ("true", "false")
_MODES = {"REDIRECT": "iptables", "TPROXY": "tproxy"}
# Annotation of a Pod -> the values it may have; none: any word.
_POD: dict[str, tuple[str, ...]] = {
    "arm": (), "backend": (), "group": (),
    "dns": ("cluster", "envoy"),  # who answers port 53; Istio's agent is asked for by its own annotation
    "mechanism": tuple(mechanisms.ALL),
    "loop-guard": _TRUTH, "virtual-ips": _TRUTH, "answers": _TRUTH, "outside": _TRUTH, "plane": _TRUTH, "ready": _TRUTH,
    "told": _TRUTH,  # whether Istio is told of it
}  # fmt: skip
_CALLED: dict[str, tuple[str, ...]] = {"backend": (), "group": ()}
_ALLOWED = {
    "Pod": _POD, "Service": _CALLED | {"told": _TRUTH}, "ServiceEntry": _CALLED | {"served-by": ()},
}  # fmt: skip
_ISTIO: dict[str, tuple[str, ...]] = {_INJECT: (), _PROXY: (), _INTERCEPTION: tuple(_MODES), _EXCLUDED: ()}  # of a Pod
_PORTS = 1, 65535
_SETTINGS = (
    "domain", "cluster-ips", "virtual-ips", "unroutable", "external-name", "external-pod", "lookup",
)  # fmt: skip


class _Read:
    """One document, whose faults are kept; of fields that are not asked for nothing is said."""

    def __init__(self, document: Document, faults: list[Fault]) -> None:
        self.field = Field(document.root, "", document, faults)
        self.top = self.field.fields()
        self.meta, self.spec = self.top.within("metadata"), self.top.within("spec")
        self.kind, self.name = self.top.text("kind"), self.meta.text("name")
        self.namespace = self.meta.text("namespace", "default")

    def fault(self, fact: str, step: str, *path: str) -> None:
        """Where a field stands, or the nearest thing around it."""
        field, rest = self.field, path
        while rest and isinstance(field.data, dict) and rest[0] in field.data:
            field, rest = field.pairs()[rest[0]], rest[1:]
        self.field.faults.append(Fault(field.place, ".".join(path), fact, step))

    @functools.cached_property
    def notes(self) -> dict[str, str]:
        """Its annotations, ours without their prefix; those that nobody honours are faults."""
        found: dict[str, str] = {}
        ours = {f"{OURS}{key}": few for key, few in _ALLOWED.get(self.kind, {}).items()}
        theirs = _ISTIO if self.kind == "Pod" else {}
        for key, field in self.meta.pairs("annotations").items():
            if key in ours or key in theirs:
                found[key.removeprefix(OURS)] = field.into(str, {**ours, **theirs}[key]) or ""
            elif key.startswith(OURS):
                field.fault(f"a {self.kind} has no annotation {key}", f"known: {', '.join(ours)}")
            elif key.partition("/")[0].endswith("istio.io"):
                field.fault(f"{key} is not honoured here", f"leave it out; honoured: {', '.join(theirs) or 'none'}")
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
        found += [_Read(document, faults) for document in documents.parse(text, str(path), faults)]
    refuse(faults, "the world")
    world = _Builder(found, faults).build()
    refuse(faults, "the world")
    return world


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise errors.InputError("holds no world file", place=str(path), step="name one ending in .yaml")
    return files


class _Builder:
    """Documents to a world; what is wrong with them is kept as faults."""

    def __init__(self, found: Sequence[_Read], faults: list[Fault]) -> None:
        self.found, self.faults = found, faults
        self.pods: dict[str, Pod] = {}
        self.dns = {one.spec.text("clusterIP"): one for one in self.of("Service") if one.namespace == SYSTEM}
        self.search: tuple[str, ...] = ()  # of every pod's resolv.conf

    def of(self, *kinds: str) -> Iterator[_Read]:
        return (one for one in self.found if one.kind in kinds)

    def build(self) -> World:
        settings = next((one for one in self.of("ConfigMap") if one.name == "meshdns"), None)
        usual = next((address for address, one in self.dns.items() if one.name == DNS), "")
        if settings is None or not usual:
            what = "ConfigMap meshdns" if settings is None else f"Service {SYSTEM}/{DNS}"
            place = self.found[0].field.document.file if self.found else "an empty world"
            step = "take it from compose/worlds, where it stands with what it means"
            raise errors.InputError(f"the world has no {what}", place=place, step=step)
        data = {key: each.text() for key, each in settings.top.pairs("data").items()}
        for key in _SETTINGS:
            if key not in data:
                settings.fault(f"{key} is missing", "add it", "data")
        for key in data:
            if key not in _SETTINGS and not key.startswith("answer."):
                settings.fault(f"{key} is no setting", f"known: {', '.join(_SETTINGS)}, answer.NAME", "data", key)
        refuse(self.faults, "the world")
        self.search = search(settings.namespace, data["domain"])
        for one in self.of("Pod"):
            self._add_pod(one)
        refuse(self.faults, "the world")
        injected = any(pod.sidecar for pod in self.pods.values())
        for name in ("world-dns", "observer", *["recorded"] * injected):
            if name not in self.pods:
                settings.fault(f"the world has no Pod {name}", "take it from compose/worlds", "metadata", "name")
        if data["external-pod"] not in self.pods:
            settings.fault(f"there is no Pod {data['external-pod']}", "name one", "data", "external-pod")
        if not any(pod.arm for pod in self.pods.values()):
            settings.fault("no Pod is an arm", f"give one the annotation {OURS}arm", "metadata", "name")
        refuse(self.faults, "the world")
        answering = dict(self._cluster_dns())
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
            external_name=data["external-name"],
            external_pod=data["external-pod"],
            lookup=data["lookup"],
            pods=tuple(self.pods.values()),
            services=services,
            answers=dict(_answers(settings, data)),
            manifests=tuple(self._manifests()),
            cluster_dns=answering,
        )

    # -- pods --------------------------------------------------------------------------------------------------------

    def _add_pod(self, one: _Read) -> None:
        notes = one.notes
        network, host = _place(one)
        if one.name in self.pods:
            one.fault(f"there are two Pods {one.name}", "rename one", "metadata", "name")
        if any((network, host) == (pod.network, pod.host) for pod in self.pods.values()):
            one.fault("another Pod has this address", "give it one of its own", "status", "podIP")
        if any(notes.get("arm") == pod.arm for pod in self.pods.values() if pod.arm):
            one.fault(f"the arm {notes['arm']} is there already", "rename one", "metadata", "annotations", f"{OURS}arm")
        metadata = _proxy_metadata(one)
        containers = [each.fields() for each in one.spec.some("containers")]
        made_of, sidecar = tuple(_part(one, each) for each in containers), notes.get(_INJECT) == "true"
        if len({*made_of}) < len(made_of):
            one.fault("two containers are the same part", "leave one of them out", "spec", "containers")
        needs = [*self._needs(one, made_of)]
        if len(made_of) > 1 and (sidecar or "arm" in notes):
            one.fault("a Pod that is an arm or has a sidecar has one container here", "leave one", "spec", "containers")
        self.pods[one.name] = Pod(
            pod=one.name,
            host=host,
            part=made_of[0] if made_of else "",
            parts=made_of if len(made_of) > 1 else (),
            network=network,
            group=notes.get("group", CORE),
            arm=notes.get("arm", ""),
            backend=notes.get("backend", ""),
            sidecar=sidecar,
            dns="agent" if metadata.get(_CAPTURE, "").lower() == "true" else notes.get("dns", "cluster"),
            mechanism=notes.get("mechanism", _MODES.get(notes.get(_INTERCEPTION, ""), "iptables")),
            guarded=notes.get("loop-guard") != "false",
            virtual_ips=notes.get("virtual-ips") == "true",
            answers=notes.get("answers") == "true",
            account=one.spec.text("serviceAccountName", "default"),
            labels=dict(one.meta.labels("labels")),
            excluded=tuple(_excluded(one)),
            proxy_metadata=metadata,
            outside=notes.get("outside") == "true",
            plane=notes.get("plane") == "true",
            name_server=self._name_server(one),
            ready=notes.get("ready") != "false",
            needs_live=next(filter(None, needs), ""),
            ports=tuple(_port(port, "containerPort") for each in containers[:1] for port in _each(each, "ports")),
        )

    def _said(self, *config_maps: str) -> dict[str, Field]:
        """What these say together."""
        held = [each.top.pairs("data") for each in self.of("ConfigMap") if each.name in config_maps]
        return {key: value for each in reversed(held) for key, value in each.items()}

    def _needs(self, one: _Read, made_of: Sequence[str]) -> Iterator[str]:
        """Why its parts need Istio's own control plane, as the ConfigMaps that it mounts configure them."""
        said = self._said(*(each.within("configMap").text("name") for each in _each(one.spec, "volumes")))
        for name, part in ((name, parts.ALL[name]) for name in made_of if name):
            if (key := part.configured_by) in said:
                yield part.needs_live(said[key].text())
            elif key:
                step = f"mount a ConfigMap that has it, as a volume: {name} is configured by it"
                one.fault(f"none of its volumes is a ConfigMap with {key}", step, "spec", "volumes")

    def _name_server(self, one: _Read) -> str:
        """The cluster DNS that its resolv.conf names; empty where it is the usual one."""
        field = one.spec.get("dnsConfig")
        if field is None:
            return ""
        servers = field.fields().each("nameservers")
        named = servers[0].text() if len(servers) == 1 else ""
        resolv_conf = {"searches": [*self.search], "options": [{"name": "ndots", "value": "5"}]}
        own = {"nameservers": [named], **resolv_conf}
        known = named in self.dns or (named == node_dns.ADDRESS and COREFILE in self._said(node_dns.CONFIG_MAP))
        if known and field.data == own and one.spec.text("dnsPolicy") == "None":
            return "" if named in self.dns and self.dns[named].name == DNS else named
        have = ", ".join(f"{address} ({each.name})" for address, each in self.dns.items())
        step = f"set dnsPolicy to None, and give one of {have} with the searches and ndots that other pods have"
        one.fault("its name server is not honoured here", step, "spec", "dnsConfig")
        return ""

    def _cluster_dns(self) -> Iterator[tuple[str, str]]:
        """ClusterIP -> the pod that answers there."""
        slices = self._slices()
        for address, one in self.dns.items():
            endpoints = slices.get((one.namespace, one.name))
            behind = [self.pods[pod] for pod, _ in self._replicas(endpoints)] if endpoints else []
            if len(behind) != 1:
                one.fault(f"{len(behind)} pods answer for it", "give it an EndpointSlice with one", "metadata", "name")
            elif not any(isinstance(parts.ALL[part], NameServer) for part in behind[0].parts or (behind[0].part,)):
                have = ", ".join(name for name, each in parts.ALL.items() if isinstance(each, NameServer))
                fact = f"no container of {behind[0].pod} is a name server"
                one.fault(fact, f"add a part that is one: {have}", "metadata", "name")
            else:
                yield address, behind[0].pod

    def _manifests(self) -> Iterator[Manifest]:
        """As they were given, each with its group."""
        groups = {(one.namespace, one.name): one.notes.get("group", CORE) for one in self.of("Service")}
        owned = {id(one): groups.get(owner, CORE) for owner, one in self._slices().items()}
        for one in self.found:
            group = one.notes.get("group", CORE) if one.kind in _ALLOWED else owned.get(id(one), CORE)
            yield Manifest(Path(one.field.document.file).name, one.field.data, group)

    # -- services ----------------------------------------------------------------------------------------------------

    def _services(self, namespace: str, domain: str) -> Iterator[Service]:
        slices = self._slices()
        named: dict[str, Service] = {}
        for one in self.of("Service"):
            if one.namespace != SYSTEM:
                named[one.name] = self._service(one, slices.get((one.namespace, one.name)), domain)
        yield from (each for each in named.values() if each.group == CORE)
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
        yield from (each for each in named.values() if each.group != CORE)
        for one in self.of("ServiceEntry"):
            yield self._entry(one, {each.host: each for each in named.values()})

    def _slices(self) -> dict[tuple[str, str], _Read]:
        """EndpointSlices by the Service that they are of."""
        labels = ((one, dict(one.meta.labels("labels"))) for one in self.of("EndpointSlice"))
        return {(one.namespace, those.get("kubernetes.io/service-name", "")): one for one, those in labels}

    def _service(self, one: _Read, endpoints: _Read | None, domain: str) -> Service:
        notes, ports = one.notes, _each(one.spec, "ports")
        for port in ports:
            if not port.text("name"):
                one.fault("a port has no name, so its protocol is not known", "name it, e.g. http", "spec", "ports")
        replicas = dict(self._replicas(endpoints)) if endpoints else {}
        address = one.spec.text("clusterIP")
        return Service(
            name=one.name,
            host=f"{one.name}.{one.namespace}.svc.{domain}",
            backend=notes.get("backend", ""),
            cluster_ip="" if address == "None" else address,
            replicas=replicas,
            meshed=self._meshed(replicas),
            group=notes.get("group", CORE),
            ports=tuple(_port(port, "port") for port in ports),
            target_ports=tuple(port.integer("targetPort", *_PORTS) or _port(port, "port") for port in ports),
            watched=address not in ("", "None"),
        )

    def _replicas(self, endpoints: _Read) -> Iterator[tuple[str, int]]:
        """Ready endpoints, by the pods that have their addresses."""
        there = {Nets().pod(pod.host): pod for pod in self.pods.values() if pod.network == "pods"}
        for endpoint in _each(endpoints.top, "endpoints"):
            target = endpoint.within("targetRef")
            if target.data and not target.text("namespace"):
                step = "add it: without it Istio waits for the pod for ever"
                target.at.fault(f"the reference to {target.text('name')} has no namespace", step)
            ready = endpoint.within("conditions").boolean("ready", True)
            for address in endpoint.each("addresses"):
                pod = there.get(address.text())
                if pod is None:
                    address.fault(f"no Pod has the address {address.text()}", "correct it, or add the Pod")
                elif ready:
                    yield pod.pod, pod.host

    def _entry(self, one: _Read, services: Mapping[str, Service]) -> Service:
        notes = one.notes
        there = {Nets().pod(pod.host): {pod.pod: pod.host} for pod in self.pods.values() if pod.network == "pods"}
        there |= {host: dict(each.replicas) for host, each in services.items()}
        behind = [there.get(each.text("address"), {}) for each in _each(one.spec, "endpoints")]
        replicas = {pod: host for each in behind for pod, host in each.items()}
        allocated = [each.text("value") for each in _each(one.top.within("status"), "addresses")]
        served = notes.get("served-by", "")
        if served and served not in self.pods:
            one.fault(f"there is no Pod {served}", "name one", "metadata", "annotations", f"{OURS}served-by")
        ports, hosts = _each(one.spec, "ports"), one.spec.some("hosts")
        resolved = one.spec.text("resolution") == "DNS" and bool(replicas)
        return Service(
            name=one.name,
            host=hosts[0].text() if hosts else "",
            backend=notes.get("backend", ""),
            virtual_ip=next((each for each in allocated if is_address(each)), ""),
            replicas=replicas,
            meshed=self._meshed(replicas),
            group=notes.get("group", CORE),
            ports=tuple(_port(port, "number") for port in ports),
            target_ports=tuple(port.integer("targetPort", *_PORTS) or _port(port, "number") for port in ports),
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
            one = next(each for each in self.of(*_ALLOWED) if each.notes.get("backend") == word)
            one.fault(f"two things have the backend {word}", "rename one", "metadata", "annotations", f"{OURS}backend")


def _part(one: _Read, container: Fields) -> str:
    """What a container is: the part that has its name, or that of its image."""
    image = container.text("image").rpartition("/")[2].partition(":")[0]
    name = next((each for each in (container.text("name"), image) if each in parts.ALL), "")
    if name:
        if (stage := parts.ALL[name].image) not in parts.stages():
            fact, step = f"the image {stage} of the part {name} cannot be built", "add it to compose/images/Dockerfile"
            one.fault(fact, step, "spec", "containers")
        return name
    step = f"known: {', '.join(parts.ALL)}, as the container's name, or its image's"
    one.fault(f"{image or 'nothing'} is no part of a testbed", step, "spec", "containers")
    return ""


def _place(one: _Read) -> tuple[str, int]:
    """Network and host number, from the address on the default networks."""
    address = one.top.within("status").text("podIP")
    front, _, last = address.rpartition(".")
    nets = {Nets().pods: "pods", Nets().world: "world"}
    if front in nets and is_address(address) and 2 <= int(last) <= 254:
        return nets[front], int(last)
    step = f"give it one in {' or '.join(Nets().cidrs())}; the networks of a testbed may be others"
    one.fault(f"{address or 'nothing'} is not an address of the testbed", step, "status", "podIP")
    return "pods", 0


def _each(fields: Fields, name: str) -> list[Fields]:
    return [each.fields() for each in fields.each(name)]


def _port(fields: Fields, name: str) -> int:
    field = fields.need(name)
    return field.integer(*_PORTS) if field else 0


def _excluded(one: _Read) -> Iterator[int]:
    """Ports that Istio's annotation leaves out of what is captured."""
    field = one.meta.pairs("annotations").get(_EXCLUDED)
    for text in field.text().split(",") if field else ():
        port = int(text) if text.strip().isdecimal() and len(text) < 7 else 0
        if field and not _PORTS[0] <= port <= _PORTS[1]:
            field.fault(f"{text!r} is no port", "e.g. '15098,9100'")
        yield port


def _proxy_metadata(one: _Read) -> dict[str, str]:
    """What Istio's annotation gives the agent as its environment."""
    field = one.meta.pairs("annotations").get(_PROXY)
    if field is None:
        return {}
    found = documents.parse(field.text(), f"{field.place}: {_PROXY}", field.faults)
    config = Field(found[0].root, "", found[0], field.faults).fields() if found else Fields(field, {})
    with config:
        return dict(config.labels("proxyMetadata"))


def _answers(settings: _Read, data: Mapping[str, str]) -> Iterator[tuple[str, Answer]]:
    for key, value in data.items():
        if not key.startswith("answer."):
            continue
        address, _, port = value.rpartition(":")
        if not (address == "own" or is_address(address)) or not port.isdecimal() or len(port) > 5:
            settings.fault(f"{value!r} is not an address with a port", "e.g. 10.96.1.20:80", "data", key)
            continue
        usual = f"{Nets().pods}."
        where = "{own}" if address == "own" else address.replace(usual, "{pods}.") if usual in address else address
        yield key.removeprefix("answer."), Answer(where, int(port))
