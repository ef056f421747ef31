"""What applies to traffic: DestinationRule, PeerAuthentication, Sidecar (istio.io reference pages of these names)."""

from __future__ import annotations

import re
from collections.abc import Callable

from meshdns.core.schema import HEADER_STEP, Field, Fields, is_header
from meshdns.istio.kinds import MAX_PORT, exported, named, once
from meshdns.istio.resources import (
    DestinationRule,
    EnvoyFilter,
    Meta,
    MtlsMode,
    PeerAuthentication,
    Sidecar,
    Subset,
    TrafficPolicy,
    fqdn,
)

MAX_COUNT = 2**31 - 1  # the API's int32
MAX_SNI = 255  # Envoy's limit of a server name
MAX_RING = 8 * 1024 * 1024  # Envoy's limit of a hash ring
MAX_MAGLEV = 5_000_011  # Envoy's limit of a Maglev table, which is a prime number
_TLS_MODES = ("DISABLE", "SIMPLE", "ISTIO_MUTUAL")
_SIMPLE = ("UNSPECIFIED", "LEAST_REQUEST", "LEAST_CONN", "ROUND_ROBIN", "RANDOM", "PASSTHROUGH")
_SNI = re.compile(rf"[!-~]{{1,{MAX_SNI}}}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_PARAMETER = re.compile(r"[^\s\x00-\x20&=#\x7f]+")
_PATH = re.compile(r"/[^;\x00-\x20\x7f]*")
_HASH_KEYS = ("httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName")


# ---- DestinationRule


def destination_rule(meta: Meta, top: Fields) -> DestinationRule:
    """Load balancing, connection pools, outlier detection, TLS, and subsets by label."""
    with top.within("spec") as spec:
        exported(spec)
        host, items = spec.need("host"), spec.each("subsets")
        policy = spec.get("trafficPolicy")
        subsets = tuple(_subset(item) for item in items)
        once(((one.name, item) for one, item in zip(subsets, items, strict=True)), "the subset")
        return DestinationRule(
            meta,
            host=fqdn(host.host(), meta.namespace) if host else "",
            policy=_policy(policy) if policy else TrafficPolicy(),
            subsets=subsets,
        )


def _subset(item: Field) -> Subset:
    with item.fields() as fields:
        name, policy = named(fields.need("name"), "a subset name"), fields.get("trafficPolicy")
        return Subset(name, fields.labels("labels"), _policy(policy) if policy else TrafficPolicy())


def _policy(field: Field, *, of_port: bool = False) -> TrafficPolicy:
    with field.fields() as fields:
        ports: list[tuple[int, TrafficPolicy]] = []
        if of_port:
            fields.ignore("port")  # read by the caller
        else:
            items = fields.each("portLevelSettings")
            ports = [(_port(item), _policy(item, of_port=True)) for item in items]
            once(((number, item) for (number, _), item in zip(ports, items, strict=True)), "the port")
        balancer, pool = fields.get("loadBalancer"), fields.get("connectionPool")
        outlier, tls = fields.get("outlierDetection"), fields.get("tls")
        if not (balancer or pool or outlier or tls or ports):
            field.fault("the policy is empty", "give at least one of its fields")
        return TrafficPolicy(
            balancer=_balancer(balancer) if balancer else "",
            limits=_pool(pool) if pool else False,
            outlier=_outlier(outlier) if outlier else False,
            tls=_tls(tls) if tls else "",
            ports=tuple(sorted(ports, key=lambda pair: pair[0])),
        )


def _port(item: Field) -> int:
    port = item.pairs().get("port")
    if port is None:
        item.fault("the field port is missing", "give port.number")
        return 1
    with port.fields() as fields:
        number = fields.need("number")
        return number.integer(1, MAX_PORT) if number else 1


def _balancer(field: Field) -> str:
    with field.fields() as fields:
        simple, hashed = fields.get("simple"), fields.get("consistentHash")
        if (simple is None) == (hashed is None):
            field.fault("the load balancer is not clear", "give either simple or consistentHash")
        word = simple.choice(_SIMPLE) if simple else ""
        word = {"UNSPECIFIED": "", "LEAST_CONN": "LEAST_REQUEST"}.get(word, word)  # the old name of the same policy
        if hashed:
            _check_hash(hashed)
        return "consistent hash" if hashed else word or "default balancing"


def _check_hash(field: Field) -> None:
    with field.fields() as fields:
        header, cookie, source, query = (fields.get(key) for key in _HASH_KEYS)
        if sum(one is not None for one in (header, cookie, source, query)) != 1:
            field.fault("the hash key is not clear", f"give one of {', '.join(_HASH_KEYS)}")
        _check_table(fields)
        _check_name(header, is_header)
        _check_name(query, _PARAMETER.fullmatch)
        if source and not source.boolean() and source.data is False:
            source.fault("nothing is hashed then", "set it to true, or hash something else")
        if cookie:
            _check_cookie(cookie)


def _check_cookie(field: Field) -> None:
    with field.fields() as parts:
        name, ttl, path = parts.need("name"), parts.get("ttl"), parts.get("path")
        _check_name(name, _is_token)
        _check_name(path, _PATH.fullmatch)
        if ttl:
            ttl.duration_ms(zero=True)


def _check_name(field: Field | None, fits: Callable[[str], object]) -> None:
    """A name that a request can have; the proxy would refuse an empty one, and never find others."""
    text = field.text() if field else ""
    if field and not fits(text) and isinstance(field.data, str):
        field.fault(f"{text!r} is nothing that a request can have here", HEADER_STEP)


def _is_token(text: str) -> bool:
    return is_header(text) and not text.startswith(":")


def _check_table(fields: Fields) -> None:
    """A hash ring's least size, or that of a Maglev table."""
    ring = fields.integer("minimumRingSize", 1, MAX_RING) or 0  # the older place of the same number
    with fields.within("ringHash") as given:
        ring = given.integer("minimumRingSize", 1, MAX_RING) or ring
    maglev = fields.get("maglev")
    if maglev is None:
        return
    if ring:
        maglev.fault("both a hash ring and Maglev are given", "keep one")
    with maglev.fields() as given:
        size = given.integer("tableSize", 2, MAX_MAGLEV) or 65537  # Envoy's default
        if any(size % divisor == 0 for divisor in range(2, int(size**0.5) + 1)):
            maglev.fault(f"the table size {size} is not a prime number", "give a prime, such as 65537")


def _pool(field: Field) -> bool:
    with field.fields() as fields:
        if not fields.data:
            field.fault("the connection pool is empty", "give tcp or http")
        with fields.within("tcp") as tcp, fields.within("http") as http:
            tcp.integer("maxConnections", 1, MAX_COUNT)
            for each in ("connectTimeout", "idleTimeout", "maxConnectionDuration"):
                tcp.duration_ms(each)
            for each in ("http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries"):
                http.integer(each, 0, MAX_COUNT)
            http.duration_ms("idleTimeout")
        return True


def _outlier(field: Field) -> bool:
    with field.fields() as fields:
        split, local = fields.boolean("splitExternalLocalOriginErrors"), fields.get("consecutiveLocalOriginFailures")
        if local and local.integer(0, MAX_COUNT) and not split:
            local.fault("local failures are not counted apart", "set splitExternalLocalOriginErrors to true")
        for each in ("consecutive5xxErrors", "consecutiveGatewayErrors"):
            fields.integer(each, 0, MAX_COUNT)
        for each in ("interval", "baseEjectionTime"):
            fields.duration_ms(each)
        for each in ("maxEjectionPercent", "minHealthPercent"):
            fields.integer(each, 0, 100)
        return True


def _tls(field: Field) -> str:
    with field.fields() as fields:
        mode, sni = _tls_mode(fields.get("mode")), fields.get("sni")
        text = sni.text() if sni else ""
        if sni and text and not _SNI.fullmatch(text):
            shown = text if len(text) <= MAX_SNI else f"{text[:20]}… ({len(text)} characters)"
            sni.fault(f"{shown!r} is not a server name", f"use up to {MAX_SNI} letters, digits, dots and dashes")
        return mode


def _tls_mode(field: Field | None) -> str:
    """MUTUAL would take certificate files of the user's from the sidecar's disk, and there are none."""
    if field and field.data == "MUTUAL":
        fact = "MUTUAL is not supported here: it needs a certificate of your own in the sidecar's container"
        field.fault(fact, f"supported: {', '.join(_TLS_MODES)}, which is MUTUAL with the mesh's own certificates")
        return _TLS_MODES[0]
    return field.choice(_TLS_MODES) if field else _TLS_MODES[0]


# ---- PeerAuthentication, Sidecar


def peer_authentication(meta: Meta, top: Fields) -> PeerAuthentication:
    """A port's own mode needs a selector: ports are those of a workload."""
    with top.within("spec") as spec:
        with spec.within("selector") as selector:
            labels = selector.labels("matchLabels")
        with spec.within("mtls") as mtls:
            mode = _mode(mtls)
        ports = spec.get("portLevelMtls")
        found: list[tuple[int, MtlsMode]] = []
        for key, field in ports.pairs().items() if ports else ():
            number = int(key) if _PORT.fullmatch(key) else 0
            if not 1 <= number <= MAX_PORT:
                field.fault(f"{key} is not a port", f"give 1 to {MAX_PORT}")
            with field.fields() as one:
                found.append((number, _mode(one)))
        if ports and not labels:
            ports.fault("a mode per port needs a selector", "give selector.matchLabels")
        return PeerAuthentication(meta, labels, mode, tuple(sorted(found)))


def envoy_filter(meta: Meta, top: Fields) -> EnvoyFilter:
    """It patches what Istio makes, which is no part of this model."""
    top.ignore("spec")
    return EnvoyFilter(meta)


def _mode(fields: Fields) -> MtlsMode:
    return MtlsMode(fields.choice("mode", tuple(MtlsMode)))


def sidecar(meta: Meta, top: Fields) -> Sidecar:
    """Only what is done with unknown destinations; which services a sidecar knows cannot be limited here."""
    with top.within("spec") as spec:
        with spec.within("workloadSelector") as selector:
            labels = selector.labels("labels")
        policy = spec.need("outboundTrafficPolicy")
        if policy is None:
            return Sidecar(meta, labels)
        with policy.fields() as fields:
            mode = fields.need("mode")
            return Sidecar(meta, labels, mode.choice(("ALLOW_ANY", "REGISTRY_ONLY")) if mode else "ALLOW_ANY")
