"""Mutual TLS between sidecars: Istio's words for it, and the transport sockets of both ends.

Certificate and trust come as the secrets `default` and `ROOTCA`. A client checks that the server's SPIFFE name is one
of the service's accounts, a server that the client's is of this mesh. Which protocol travels inside is said by ALPN,
because the receiving sidecar chooses its chain before it has decrypted anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshdns.istio.resources import DOMAIN
from meshdns.xds.api import ADS, Json, extension, typed

CERTIFICATE, ROOT = "default", "ROOTCA"  # Istio's names of the secrets
MOST_SNI = 255  # Envoy's limit in bytes

# Istio's words, by what is inside. The last ones are ordinary: the server picks them, and they tell its HTTP codec.
BYTES = ["istio-peer-exchange", "istio"]
HTTP1 = ["istio-http/1.1", "istio", "http/1.1"]
HTTP2 = ["istio-h2", "istio", "h2"]
# Where the sidecar found out that it is HTTP, of either version: nothing ordinary is offered, the codec looks itself.
HTTP_ANY = ["istio-http/1.1", "istio"]
# What a server takes for a sidecar's HTTP, and for a sidecar's anything.
HTTP_INSIDE = ["istio-http/1.0", "istio-http/1.1", "istio-h2"]
ANY_INSIDE = [*BYTES, *HTTP_INSIDE]
_MATCHED = "envoy.transport_socket_match"
_TLS = "extensions.transport_sockets.tls.v3"
_VERSIONS = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}
MEMBER = {"filter_metadata": {_MATCHED: {"tlsMode": "istio"}}}  # of endpoints that are reached by mutual TLS
PLAIN = extension("envoy.transport_sockets.raw_buffer", "extensions.transport_sockets.raw_buffer.v3.RawBuffer")


def _secret(name: str) -> Json:
    return {"name": name, "sds_config": ADS}


def _context(validation: Json, protocols: Sequence[str]) -> Json:
    combined = {"default_validation_context": validation, "validation_context_sds_secret_config": _secret(ROOT)}
    return {
        "tls_params": _VERSIONS,
        "tls_certificate_sds_secret_configs": [_secret(CERTIFICATE)],
        "combined_validation_context": combined,
        "alpn_protocols": list(protocols),
    }


def _named(kind: str, name: str) -> Json:
    return {"san_type": "URI", "matcher": {kind: name}}


def _socket(kind: str, **fields: Any) -> Json:
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed(f"{_TLS}.{kind}", **fields)}


def client(server_name: str, accounts: Sequence[str], protocols: Sequence[str]) -> Json:
    """The calling end; no accounts: any identity of the mesh's CA is taken."""
    validation = {"match_typed_subject_alt_names": [_named("exact", name) for name in accounts]} if accounts else {}
    shown = {"sni": server_name} if len(server_name.encode()) <= MOST_SNI else {}
    return _socket("UpstreamTlsContext", common_tls_context=_context(validation, protocols), **shown)


def matches(socket: Json) -> list[Json]:
    """Automatic mutual TLS: this socket to endpoints that are marked, plain text to the others."""
    return [
        {"name": "tlsMode-istio", "match": {"tlsMode": "istio"}, "transport_socket": socket},
        {"name": "tlsMode-disabled", "match": {}, "transport_socket": PLAIN},
    ]


def server(*, http: bool) -> Json:
    """The receiving end: a client certificate of this mesh is required."""
    protocols = ["h2", "http/1.1"] if http else [BYTES[0], "h2", "http/1.1"]  # as Istio's listeners offer them
    validation = {"match_typed_subject_alt_names": [_named("prefix", f"spiffe://{DOMAIN}/")]}
    return _socket(
        "DownstreamTlsContext", common_tls_context=_context(validation, protocols), require_client_certificate=True
    )


def simple(server_name: str, trusted_ca: str, protocols: Sequence[str]) -> Json:
    """TLS to a server outside the mesh; without a CA its certificate is not verified."""
    common: Json = {"tls_params": _VERSIONS}
    common |= {"alpn_protocols": list(protocols)} if protocols else {}
    common |= {"validation_context": {"trusted_ca": {"filename": trusted_ca}}} if trusted_ca else {}
    return _socket("UpstreamTlsContext", common_tls_context=common, **({"sni": server_name} if server_name else {}))
