"""Where requests and connections go: VirtualService (istio.io "Virtual Service")."""

from __future__ import annotations

from collections.abc import Sequence

from meshdns.core.schema import HEADER_STEP, Field, Fields, is_header
from meshdns.istio import expressions
from meshdns.istio.kinds import MAX_PORT, exported, once
from meshdns.istio.resources import (
    Abort,
    Delay,
    Destination,
    HttpMatch,
    HttpRoute,
    Meta,
    StringMatch,
    TcpRoute,
    VirtualService,
    fqdn,
)

MAX_ATTEMPTS = 1000  # Envoy takes 32 bits; more than this is a slip of the keyboard
# Envoy's for HTTP and for gRPC, those that need nothing else to be given.
CONDITIONS = (
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
    "refused-stream", "retriable-status-codes", "http3-post-connect-failure", "cancelled", "deadline-exceeded",
    "internal", "resource-exhausted", "unavailable",
)  # fmt: skip
_COMPARISONS = ("exact", "prefix", "regex")


def virtual_service(meta: Meta, top: Fields) -> VirtualService:
    """HTTP and TCP routes of the mesh's own sidecars."""
    with top.within("spec") as spec:
        exported(spec)
        for gateway in spec.each("gateways"):
            gateway.choice(("mesh",))
        hosts, http, tcp = spec.some("hosts"), spec.each("http"), spec.each("tcp")
        if not http and not tcp:
            spec.at.fault("there is no route", "give http or tcp")
        found = tuple(fqdn(field.host(), meta.namespace) for field in hosts)
        once(zip(found, hosts, strict=True), "the host")
        return VirtualService(
            meta,
            hosts=found,
            http=tuple(_http_route(item, meta.namespace) for item in http),
            tcp=tuple(_tcp_route(item, meta.namespace) for item in tcp),
        )


def _http_route(item: Field, namespace: str) -> HttpRoute:
    with item.fields() as fields:
        with fields.within("fault") as fault:
            delay, abort = fault.get("delay"), fault.get("abort")
            found = _delay(delay) if delay else None, _abort(abort) if abort else None
        retries, timeout = fields.get("retries"), fields.get("timeout")
        return HttpRoute(
            name=fields.text("name"),
            matches=tuple(_http_match(match) for match in fields.each("match")),
            destinations=_destinations(fields.some("route"), namespace),
            timeout_ms=timeout.duration_ms(zero=True) if timeout else None,
            retries=_retries(retries) if retries else None,
            delay=found[0],
            abort=found[1],
        )


def _http_match(item: Field) -> HttpMatch:
    with item.fields() as fields:
        fields.ignore("name")
        uri, headers = fields.get("uri"), fields.pairs("headers").items()
        return HttpMatch(
            uri=_comparison(uri) if uri else None,
            headers=tuple(sorted((_header(name, field), _comparison(field, present=True)) for name, field in headers)),
            port=fields.integer("port", 1, MAX_PORT) or 0,
        )


def _header(name: str, field: Field) -> str:
    if not is_header(name):
        field.fault(f"{name!r} is not a header name", HEADER_STEP)
    return name.lower()


def _comparison(field: Field, *, present: bool = False) -> StringMatch:
    """One of exact, prefix, regex; an empty one asks for presence where that has a meaning (headers)."""
    with field.fields() as fields:
        given = [(kind, one) for kind in _COMPARISONS if (one := fields.get(kind))]
    if not given and present and not fields.data:
        return StringMatch("present")
    if len(given) != 1:
        field.fault(f"{len(given)} comparisons are given", f"give one of {', '.join(_COMPARISONS)}")
        return StringMatch("exact")
    kind, one = given[0]
    text = one.text()
    if kind == "regex" and (fact := expressions.refusal(text)):
        one.fault(fact, "write it without" if "RE2" in fact else "")
    elif kind != "regex" and any(char < " " or char == "\x7f" for char in text):
        one.fault(f"{text!r} has a control character, which no request has", "remove it")
    return StringMatch(kind, text)


def _destinations(items: Sequence[Field], namespace: str) -> tuple[Destination, ...]:
    found = [_destination(item, namespace, alone=len(items) == 1) for item in items]
    total = sum(one.weight for one in found)
    if len(found) > 1 and total != 100:
        items[0].fault(f"the weights of the {len(found)} destinations add up to {total}", "make them 100")
    return tuple(found)


def _destination(item: Field, namespace: str, *, alone: bool) -> Destination:
    with item.fields() as fields:
        weight = fields.integer("weight", 0, 100)
        with fields.within("destination") as destination:
            host, subset = destination.need("host"), destination.text("subset")
            with destination.within("port") as port:
                number = port.integer("number", 1, MAX_PORT) or 0
        if alone and weight not in (None, 0, 100):
            item.fault(f"the only destination has weight {weight}", "leave the weight out")
        text = fqdn(host.host(), namespace) if host else ""
        place = host.place if host else item.place
        return Destination(text, subset, number, 100 if alone else weight or 0, place)


def _retries(field: Field) -> int:
    with field.fields() as fields:
        attempts = fields.need("attempts")
        fields.duration_ms("perTryTimeout")
        _check_conditions(fields.get("retryOn"))
        return attempts.integer(0, MAX_ATTEMPTS) if attempts else 0


def _check_conditions(field: Field | None) -> None:
    """Conditions of Envoy and statuses; an unknown word would never apply, and nobody would say so."""
    text = field.text() if field else ""
    for word in filter(None, map(str.strip, text.split(","))):
        status = word.isascii() and word.isdecimal() and 100 <= int(word) <= 599
        if field and not status and word not in CONDITIONS:
            field.fault(f"{word!r} is not a condition for a retry", f"supported: {', '.join(CONDITIONS)}, a status")


def _percent(fields: Fields) -> float:
    """Istio's `percentage.value`; left out it means no request."""
    with fields.within("percentage") as percentage:
        value = percentage.get("value")
        return value.number(0, 100) if value else 0.0


def _delay(field: Field) -> Delay:
    with field.fields() as fields:
        fixed = fields.need("fixedDelay")
        return Delay(_percent(fields), fixed.duration_ms() if fixed else 1)


def _abort(field: Field) -> Abort:
    with field.fields() as fields:
        status = fields.need("httpStatus")
        return Abort(_percent(fields), status.integer(200, 599) if status else 503)


def _tcp_route(item: Field, namespace: str) -> TcpRoute:
    with item.fields() as fields:
        ports = []
        for match in fields.each("match"):
            with match.fields() as one:
                number = one.need("port")
                ports += [number.integer(1, MAX_PORT)] if number else []
        return TcpRoute(tuple(sorted(set(ports))), _destinations(fields.some("route"), namespace))
