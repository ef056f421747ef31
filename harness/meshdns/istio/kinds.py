"""Who is there: Service, EndpointSlice, Pod, ServiceEntry.

References: Kubernetes API (Service v1 core, EndpointSlice v1 discovery.k8s.io), istio.io "Service Entry", and Istio's
"Protocol Selection" for what a port carries.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Sequence

from meshdns.core.schema import Field, Fields, is_address, is_host, is_label
from meshdns.istio.resources import (
    SERVICE_NAME,
    EndpointSlice,
    Meta,
    Pod,
    Protocol,
    Resolution,
    Service,
    ServiceEntry,
    ServicePort,
    SliceEndpoint,
    Workload,
)

MAX_PORT = 65535
MAX_WEIGHT = 2**32 - 1
# Servers that speak first on these ports would wait for ever behind a sidecar that looks at the first bytes: SMTP, DNS
# over TCP, MySQL, MongoDB. Istio takes them as TCP where the port does not say.
SERVER_FIRST_PORTS = (25, 53, 3306, 27017)
_ACCOUNT = "a service account's name"
_PROTOCOLS = {protocol.value.lower(): protocol for protocol in Protocol if protocol is not Protocol.AUTO}
_APP_PROTOCOLS = {"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "https"}


def protocol(name: str, app_protocol: str, number: int, transport: str) -> Protocol:
    """What a Service's port carries: by appProtocol, else by the prefix of its name, else not known."""
    if transport == "UDP":
        return Protocol.UDP
    word = _APP_PROTOCOLS.get(app_protocol, app_protocol or name).lower()
    if word.startswith("grpc-web"):
        return Protocol.GRPC_WEB
    default = Protocol.TCP if number in SERVER_FIRST_PORTS else Protocol.AUTO
    return _PROTOCOLS.get(word.partition("-")[0], default)


def port(field: Field | None) -> int:
    """A port number; absent is the caller's fault to report."""
    return field.integer(1, MAX_PORT) if field else 1


def once(items: Iterable[tuple[object, Field]], what: str) -> None:
    """Each of the values stands once; the second and later ones are faults, but for stand-ins of what has one."""
    seen: set[object] = set()
    for value, field in items:
        if value in seen and not field.faulty:
            field.fault(f"{what} {value} is there twice", "keep one")
        seen.add(value)


# ---- Service


def service(meta: Meta, top: Fields) -> Service:
    """Type ClusterIP, with or without a cluster IP, with or without a selector."""
    with top.within("spec") as spec:
        spec.choice("type", ("ClusterIP",))
        spec.choice("sessionAffinity", ("None",))
        spec.choice("internalTrafficPolicy", ("Cluster",))
        spec.choice("ipFamilyPolicy", ("SingleStack", "PreferDualStack", "RequireDualStack"))
        for family in spec.each("ipFamilies"):
            family.choice(("IPv4", "IPv6"))
        items = spec.some("ports")
        return Service(
            meta,
            ports=_service_ports(items),
            cluster_ips=_cluster_ips(spec),
            selector=spec.labels("selector"),
            publish_not_ready=spec.boolean("publishNotReadyAddresses"),
        )


def _cluster_ips(spec: Fields) -> tuple[str, ...]:
    one, several = spec.get("clusterIP"), spec.each("clusterIPs")
    if one is None:  # in a cluster the API server would choose
        spec.at.fault("clusterIP is missing", "give an address of 10.96.0.0/16, or None for a headless Service")
        return ()
    if one.data == "None":
        if any(field.data != "None" for field in several):
            one.fault("clusterIP is None and clusterIPs are not", "make them agree")
        return ()
    first = one.address()
    rest = [field.address() for field in several]
    if rest and rest[0] != first:
        several[0].fault(f"clusterIPs begin with {rest[0]}, and clusterIP is {first}", "make them agree")
    return (first, *rest[1:])


def _service_ports(items: Sequence[Field]) -> tuple[ServicePort, ...]:
    found = tuple(_service_port(item) for item in items)
    for one, item in zip(found, items, strict=True) if len(found) > 1 else ():
        if not one.name:
            item.fault("the port has no name, and the Service has several ports", "name every port")
    _once_each(found, items, [f"{one.number}/{one.transport}" for one in found])
    return found


def _once_each(found: Sequence[ServicePort], items: Sequence[Field], numbers: Iterable[object]) -> None:
    once(((one.name, item) for one, item in zip(found, items, strict=True) if one.name), "the port name")
    once(zip(numbers, items, strict=True), "the port")


def _service_port(item: Field) -> ServicePort:
    with item.fields() as fields:
        name, number = _port_name(fields.get("name")), port(fields.need("port"))
        transport = fields.choice("protocol", ("TCP", "UDP"))
        carries = protocol(name, fields.text("appProtocol"), number, transport)
        target = fields.get("targetPort")
        return ServicePort(name, number, carries, transport, _target(target) if target else 0)


def _target(field: Field) -> int | str:
    if isinstance(field.data, str):
        return _port_name(field)
    return port(field)


def named(field: Field | None, what: str, fits: Callable[[str], bool] = is_label) -> str:
    """A name, of what a message calls so; absent is empty."""
    text = field.text() if field else ""
    if field and text and not fits(text):
        field.fault(f"{text!r} is not {what}", "use lower-case letters, digits and dashes")
    return text


def _port_name(field: Field | None) -> str:
    return named(field, "a port name")


# ---- EndpointSlice


def endpoint_slice(meta: Meta, top: Fields) -> EndpointSlice:
    """Belongs to the Service that its label kubernetes.io/service-name names."""
    service_name = dict(meta.labels).get(SERVICE_NAME, "")
    if not service_name:
        top.at.fault(f"the label {SERVICE_NAME} is missing", "name the Service whose endpoints these are")
    family = top.choice("addressType", ("IPv4", "IPv6"))
    ports = top.each("ports")
    named = [_slice_port(item) for item in ports]
    once(((f"{name!r}", item) for (name, _), item in zip(named, ports, strict=True)), "the port name")
    endpoints = tuple(_slice_endpoint(item, family) for item in top.each("endpoints"))
    return EndpointSlice(meta, service_name, tuple(named), endpoints)


def _slice_port(item: Field) -> tuple[str, int]:
    with item.fields() as fields:
        fields.ignore("appProtocol")  # the Service's own says it
        fields.choice("protocol", ("TCP", "UDP"))
        return _port_name(fields.get("name")), port(fields.need("port"))


def _slice_endpoint(item: Field, family: str) -> SliceEndpoint:
    version = 4 if family == "IPv4" else 6
    with item.fields() as fields:
        addresses = []
        for field in fields.some("addresses"):
            addresses.append(field.address())
            if ipaddress.ip_address(addresses[-1]).version != version:
                field.fault(f"{addresses[-1]} is not an {family} address", "make it agree with addressType")
        with fields.within("conditions") as conditions:
            ready = conditions.boolean("ready", default=True)
            for other in ("serving", "terminating"):
                conditions.boolean(other)
        with fields.within("targetRef") as target:
            target.ignore("namespace", "uid", "resourceVersion", "fieldPath", "apiVersion")
            target.choice("kind", ("Pod",))
            pod = target.text("name")
        fields.ignore("nodeName", "hints", "zone")
        hostname = fields.text("hostname")
        if hostname and not is_label(hostname):
            item.fault(f"the hostname {hostname!r} is not a DNS label", "use lower-case letters, digits and dashes")
        return SliceEndpoint(tuple(addresses), ready, hostname, pod)


# ---- Pod


def pod(meta: Meta, top: Fields) -> Pod:
    """Labels and address; the rest of a Pod concerns the kubelet, not the mesh."""
    spec, status = top.within("spec"), top.within("status")
    address = status.get("podIP")
    named(spec.get("serviceAccountName"), _ACCOUNT, is_host)
    return Pod(meta, address.address() if address else "")


# ---- ServiceEntry


def service_entry(meta: Meta, top: Fields) -> ServiceEntry:
    """The combinations of resolution, hosts, addresses and endpoints are those that Istio's validation admits."""
    with top.within("spec") as spec:
        hosts, addresses = spec.some("hosts"), spec.each("addresses")
        ports, endpoints = spec.some("ports"), spec.each("endpoints")
        exported(spec)
        location = spec.choice("location", ("MESH_EXTERNAL", "MESH_INTERNAL"))
        resolution = Resolution(spec.choice("resolution", tuple(Resolution)))
        entry = ServiceEntry(
            meta,
            hosts=tuple(field.host() for field in hosts),
            addresses=tuple(field.network() for field in addresses),
            ports=tuple(_entry_port(item) for item in ports),
            location=location,
            resolution=resolution,
            endpoints=tuple(_workload(field) for field in endpoints),
            allocated=tuple(_allocated(top.within("status"))),
        )
    _once_each(entry.ports, ports, [one.number for one in entry.ports])
    once(zip(entry.hosts, hosts, strict=True), "the host")
    once(zip(entry.addresses, addresses, strict=True), "the address")
    _resolvable(entry, spec.at, endpoints)
    _distinguishable(entry, spec.at, addresses)
    _endpoint_ports(entry, endpoints)
    return entry


def _allocated(status: Fields) -> Iterator[tuple[str, str]]:
    for field in status.each("addresses"):
        with field.fields() as one:
            host, value = one.need("host"), one.need("value")
        address = value.address() if value else ""
        if host and address:
            yield host.host(), address


def exported(spec: Fields) -> None:
    """Only what is visible everywhere is supported."""
    for field in spec.each("exportTo"):
        field.choice(("*",))


def _entry_port(item: Field) -> ServicePort:
    with item.fields() as fields:
        number, name, word = port(fields.need("number")), fields.need("name"), fields.get("protocol")
        target = fields.integer("targetPort", 1, MAX_PORT) or 0
        carries = Protocol.TCP if number in SERVER_FIRST_PORTS else Protocol.AUTO
        if word and (text := word.text()):
            carries = _PROTOCOLS.get(text.lower(), carries)
            if text.lower() not in _PROTOCOLS:
                word.fault(f"the protocol {text} is not supported", f"supported: {', '.join(_PROTOCOLS.values())}")
        return ServicePort(_port_name(name), number, carries, "UDP" if carries is Protocol.UDP else "TCP", target)


def _workload(item: Field) -> Workload:
    with item.fields() as fields:
        address = fields.need("address")
        text = address.text() if address else ""
        if address and text and not is_address(text) and not is_host(text):
            address.fault(f"{text!r} is neither an IP address nor a host name")
        fields.text("locality")
        fields.integer("weight", 1, MAX_WEIGHT)
        return Workload(
            address=text,
            ports=tuple(sorted((name, port(field)) for name, field in fields.pairs("ports").items())),
            labels=fields.labels("labels"),
            service_account=named(fields.get("serviceAccount"), _ACCOUNT, is_host),
        )


def _resolvable(entry: ServiceEntry, spec: Field, endpoints: Sequence[Field]) -> None:
    """Resolution and endpoints must fit each other."""
    resolution = entry.resolution
    if resolution is Resolution.NONE:
        for field in endpoints[:1]:
            field.fault("resolution NONE goes where the client resolved, so no endpoint may be given",
                        "remove the endpoints, or set resolution to STATIC or DNS")  # fmt: skip
    elif resolution is Resolution.STATIC:
        if not endpoints:
            spec.fault("resolution STATIC has no endpoints", "give their addresses, or set resolution to DNS")
        for one, field in zip(entry.endpoints, endpoints, strict=True):
            if one.address and not is_address(one.address):
                field.fault(f"resolution STATIC needs an IP address, not {one.address}", "or set resolution to DNS")
    else:
        wild = [host for host in entry.hosts if host.startswith("*")]
        if wild and not endpoints:
            spec.fault(f"resolution {resolution} cannot look up the wildcard {wild[0]}",
                       "give endpoints with names, or set resolution to NONE")  # fmt: skip
        if resolution is Resolution.DNS_ROUND_ROBIN and len(endpoints) > 1:
            endpoints[1].fault("resolution DNS_ROUND_ROBIN takes one endpoint at most", "keep one, or use DNS")


def _distinguishable(entry: ServiceEntry, spec: Field, addresses: Sequence[Field]) -> None:
    """The sidecar must be able to tell the hosts apart by what it sees."""
    blocks = [field for one, field in zip(entry.addresses, addresses, strict=True) if "/" in one]
    if blocks and entry.resolution not in (Resolution.NONE, Resolution.STATIC):
        blocks[0].fault(f"a CIDR block does not go with resolution {entry.resolution}", "use NONE or STATIC")
    plain = [one for one in entry.ports if one.protocol.family not in ("http", "tls")]
    if len(entry.hosts) > 1 and plain and entry.resolution is not Resolution.NONE:
        spec.fault(f"several hosts share port {plain[0].number}, which is neither HTTP nor TLS: nothing in the bytes "
                   "tells them apart", "write one ServiceEntry per host")  # fmt: skip


def _endpoint_ports(entry: ServiceEntry, endpoints: Sequence[Field]) -> None:
    names = {one.name for one in entry.ports}
    for one, field in zip(entry.endpoints, endpoints, strict=True):
        for name, _ in one.ports:
            if name not in names:
                field.fault(f"the port name {name} is not one of the ServiceEntry's", f"use {', '.join(sorted(names))}")
