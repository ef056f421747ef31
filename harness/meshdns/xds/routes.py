"""Route tables (RDS), after Istio's outbound HTTP routes: matches, shares, retries, timeouts, faults, hashing."""

from __future__ import annotations

from collections.abc import Mapping

from meshdns.istio.outbound import Cluster, Route, RouteTable, VirtualHost
from meshdns.istio.resources import ConsistentHash, HttpMatch, Retries, StringMatch
from meshdns.xds import api, filters
from meshdns.xds.api import Json

# Istio's default retries since 1.24. `retriable-status-codes` names none here: a 503 of the application is not tried
# again unless a VirtualService says so.
_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
_ATTEMPTS = 2
_ANOTHER_HOST = [
    api.extension(
        "envoy.retry_host_predicates.previous_hosts",
        "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
    )
]
_CODES = range(100, 600)
# Istio's choice at a server: a request that never reached the application may be sent again.
RESET_ONLY = {"retry_on": "reset-before-request", "num_retries": 2}
Clusters = Mapping[str, Cluster]


def table(one: RouteTable, fallback: str, clusters: Clusters) -> Json:
    """A route table; in one that is shared, names of no service go the way of unknown destinations."""
    hosts = [_host(host, clusters) for host in one.hosts]
    if not any("*" in host.domains for host in one.hosts):
        hosts.append(_unknown(fallback))
    return {"name": one.name, "virtual_hosts": hosts}


def _unknown(fallback: str) -> Json:
    if fallback == api.PASSTHROUGH:
        route = {"match": {"prefix": "/"}, "route": {"cluster": api.PASSTHROUGH, "timeout": "0s"}}
        return {"name": "allow_any", "domains": ["*"], "routes": [route]}
    refused = {"match": {"prefix": "/"}, "direct_response": {"status": 502}}
    return {"name": "block_all", "domains": ["*"], "routes": [refused]}


def _host(host: VirtualHost, clusters: Clusters) -> Json:
    return {
        "name": host.name,
        "domains": list(host.domains),
        "routes": [_route(route, clusters) for route in host.routes],
        "include_request_attempt_count": True,
    }


def _route(route: Route, clusters: Clusters) -> Json:
    keys = [key for name, share in route.clusters if share and (key := _key(clusters.get(name)))]
    action: Json = {
        **filters.destination(route.clusters),
        "timeout": api.duration(route.timeout_ms or 0),  # Istio's default is none
    }
    if retry := retry_policy(route.retries, hashed=bool(keys)):
        action["retry_policy"] = retry
    if keys:
        action["hash_policy"] = [hash_policy(key) for key in dict.fromkeys(keys)]
    found: Json = {"match": _match(route.match), "route": action}
    if route.name:
        found["name"] = route.name
    if fault := _fault(route):
        found["typed_per_filter_config"] = {filters.FAULT: fault}
    return found


def _key(cluster: Cluster | None) -> ConsistentHash | None:
    return cluster.policy.balancer.hash if cluster and cluster.policy.balancer else None


# ---- matches


def _match(match: HttpMatch) -> Json:
    found: Json = _path(match.uri) if match.uri else {"prefix": "/"}
    if match.headers:
        found["headers"] = [{"name": name, **_header(value)} for name, value in match.headers]
    return found


def _path(uri: StringMatch) -> Json:
    if uri.kind == "regex" and uri.value:
        return {"safe_regex": {"regex": uri.value}}
    return {"prefix": uri.value} if uri.kind == "prefix" else {"path": uri.value}


def _header(value: StringMatch) -> Json:
    """Envoy takes no empty prefix, which any value has, and no empty expression, which only an empty value matches."""
    if value.kind == "present" or (value.kind == "prefix" and not value.value):
        return {"present_match": True}
    if value.kind == "regex" and value.value:
        return {"string_match": {"safe_regex": {"regex": value.value}}}
    return {"string_match": {"prefix" if value.kind == "prefix" else "exact": value.value}}


# ---- what happens to a request


def retry_policy(retries: Retries | None, *, hashed: bool) -> Json | None:
    """Istio's: its default where nothing is said, none for 0 attempts; numbers among the conditions are statuses."""
    if retries is None:
        return _HASHED if hashed else _DEFAULT
    if retries.attempts == 0:
        return None
    found = {**(_HASHED if hashed else _DEFAULT), "num_retries": retries.attempts}
    if retries.retry_on:
        words = [word.strip() for word in retries.retry_on.split(",") if word.strip()]
        codes = [int(word) for word in words if word.isascii() and word.isdecimal() and int(word) in _CODES]
        words = [word for word in words if not (word.isascii() and word.isdecimal() and int(word) in _CODES)]
        if codes and "retriable-status-codes" not in words:
            words.append("retriable-status-codes")
        found |= {"retry_on": ",".join(words)} | ({"retriable_status_codes": codes} if codes else {})
    if retries.per_try_timeout_ms:
        found["per_try_timeout"] = api.duration(retries.per_try_timeout_ms)
    return found


# Where a hash chooses the endpoint, a retry goes to the same one again.
_HASHED: Json = {"retry_on": _RETRY_ON, "num_retries": _ATTEMPTS, "host_selection_retry_max_attempts": "5"}
_DEFAULT: Json = {**_HASHED, "retry_host_predicate": _ANOTHER_HOST}


def hash_policy(key: ConsistentHash) -> Json:
    """What of a request is hashed."""
    if key.key == "header":
        return {"header": {"header_name": key.name}}
    if key.key == "query":
        return {"query_parameter": {"name": key.name}}
    if key.key == "source-ip":
        return {"connection_properties": {"source_ip": True}}
    cookie = {"name": key.name} | ({"path": key.cookie_path} if key.cookie_path else {})
    # With a lifetime Envoy sets the cookie where a request has none.
    return {"cookie": cookie | ({"ttl": api.duration(key.cookie_ttl_ms)} if key.cookie_ttl_ms is not None else {})}


def _fault(route: Route) -> Json | None:
    if not route.delay and not route.abort:
        return None
    found = api.typed("extensions.filters.http.fault.v3.HTTPFault")
    if route.delay:
        delay = {"fixed_delay": api.duration(route.delay.delay_ms), "percentage": api.percent(route.delay.percent)}
        found["delay"] = delay
    if route.abort:
        abort = {"http_status": route.abort.status, "percentage": api.percent(route.abort.percent)}
        found["abort"] = abort
    return found
