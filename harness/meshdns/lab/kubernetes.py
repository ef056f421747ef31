"""The API server of a live plane, told a world: its objects, what a kubelet would say of Pods, tokens of accounts.

No kubelet and no controller runs: Pods have the addresses that the place gave them, EndpointSlices are those of the
manifests, and what the API server or Istio refuses is said with the file in which it stands.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import urllib3.exceptions
import yaml
from kubernetes import client, dynamic
from kubernetes.client.exceptions import ApiException

from meshdns.core import errors
from meshdns.core.schema import Fault, Place, refuse
from meshdns.core.world import Manifest, World
from meshdns.lab import keys

TIMEOUT_S = 30
NODE = "meshdns"  # where all Pods are; nobody looks for it
ISTIO, OPERATOR = "istio-system", "meshdns"
AUDIENCE = "istio-ca"  # as Istio's injector asks for
# A kubelet renews a token before its 12 hours are over; here nobody does, and certificates are renewed by it.
TOKEN_LIFE_S = int(keys.LIFE.total_seconds())
ROOT, ROOT_KEY = "istio-ca-root-cert", "root-cert.pem"  # ConfigMap that istiod writes into each namespace
_AGE_S = 1.1  # creation times have whole seconds
_POLL_S = 0.05
_CONFLICT = 409
Found = TypeVar("Found")
Well = Callable[[], None]  # raises where what is waited for has ended
_ADMISSION = "admissionregistration.k8s.io/v1"
_GROUPS = "networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io"
Json = dict[str, Any]


class Api:
    """One API server that answers."""

    def __init__(self, url: str, token: str, ca_file: Path, well: Well) -> None:
        """Waits until it does; `ca_file` is of its signer. Raises TestbedError, or what `well` raises meanwhile."""
        self._well = well
        settings = client.Configuration(host=url)
        settings.ssl_ca_cert, settings.retries = str(ca_file), False
        settings.api_key = {"authorization": f"Bearer {token}"}
        settings.tls_server_name = keys.API_SERVER
        settings.proxy = None  # it is on this machine, whatever the environment says
        plain = client.ApiClient(settings)
        made: Callable[..., Any] = dynamic.DynamicClient
        cache = str(ca_file.with_name("kinds.json"))
        self._api = self._awaited("the API server", lambda: made(plain, cache_file=cache))
        self._awaited("the API server", lambda: self._api.request("get", "/readyz", serialize=False))

    def define(self, crds: str) -> None:
        """Istio's kinds are known."""
        documents = [each for each in yaml.load_all(crds, yaml.CSafeLoader) if each]
        self._each(self._create, [Manifest("Istio's own", each) for each in documents], "the API server")
        names = {each["metadata"]["name"] for each in documents}
        self._awaited("Istio's kinds", lambda: names <= self._established())

    def apply(self, world: World, told: Sequence[Manifest]) -> None:
        """All of it is there, the oldest first. InputError names what was refused."""
        pods = [each for each in told if each.kind == "Pod"]
        for namespace in sorted({each.namespace for each in told} | {ISTIO}):
            self._make(_plain("Namespace", namespace))
        for namespace, name in sorted({(each.namespace, account(each)) for each in pods}):
            self._make(_plain("ServiceAccount", name, namespace))
        faults: list[Fault] = []
        rest = [each for each in told if each.kind not in ("Namespace", "ServiceAccount")]
        for number, (_, group) in enumerate(itertools.groupby(rest, lambda each: each.created)):
            if number:
                time.sleep(_AGE_S)
            for each in group:
                faults += self._tried(self._create, each, _status(each, world))
        refuse(faults, "the world")

    def ask_istio(self, url: str) -> None:
        """Whatever changes Istio's configuration from now on, istiod is asked at this address whether it is valid."""
        authority = base64.b64encode(self.root(ISTIO).encode()).decode()
        rule = {"apiGroups": [*_GROUPS], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"]}
        hook = {
            "name": "validation.istio.io",
            "clientConfig": {"url": url, "caBundle": authority},
            "rules": [{**rule, "resources": ["*"]}],
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
        }
        kind = "ValidatingWebhookConfiguration"
        self._make({"apiVersion": _ADMISSION, "kind": kind, "metadata": {"name": "istiod"}, "webhooks": [hook]})

    def judge(self, told: Sequence[Manifest]) -> None:
        """Istio's own validation takes all of it, as it stands. InputError names what it refused."""
        theirs = [each for each in told if each.api.partition("/")[0].endswith("istio.io")]
        self._each(self._judge, theirs, "the world")

    def put(self, told: Sequence[Manifest]) -> None:
        """These are there as they stand, whatever was before. InputError names what was refused."""
        self._each(self._replace, told, "the change")

    def remove(self, told: Sequence[Manifest]) -> None:
        """These are gone."""
        for each in told:
            kind = self._kind(each)
            with contextlib.suppress(dynamic.exceptions.NotFoundError):
                kind.delete(name=each.name, **_within(kind, each))

    def tell_endpoints(self, told: Sequence[Manifest]) -> None:
        """EndpointSlices say this of their endpoints from now on."""
        for each in told:
            self._patch(self._kind(each), each, {"endpoints": each.document["endpoints"]})

    def tell_pod(self, pod: Manifest, *, ready: bool) -> None:
        """A Pod's status says so from now on."""
        self._patch(self._kind(pod).status, pod, {"status": {"conditions": _conditions(ready=ready)}})

    @cached_property
    def operator(self) -> str:
        """A token by which istiod lets its own pages be read: of an account of its namespace."""
        self._make(_plain("ServiceAccount", OPERATOR, ISTIO))
        return self.token(ISTIO, OPERATOR)

    def token(self, namespace: str, name: str, pod: str = "") -> str:
        """What a kubelet would give a pod of this account, for Istio's certificate authority."""
        spec: Json = {"audiences": [AUDIENCE], "expirationSeconds": TOKEN_LIFE_S}
        if pod:
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": pod}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str(self._api.request("post", path, body=body).status.token)

    def root(self, namespace: str) -> str:
        """The certificate of Istio's authority. Raises TestbedError where istiod does not write it."""
        path = f"/api/v1/namespaces/{namespace}/configmaps/{ROOT}"
        return str(
            self._awaited("the certificate of Istio's authority", lambda: self._api.request("get", path).data[ROOT_KEY])
        )

    def allocated(self) -> bool:
        """Whether each ServiceEntry that gets virtual IPs has them."""
        entries = self._api.resources.get(api_version="networking.istio.io/v1", kind="ServiceEntry").get().items
        return all((each.status or {}).get("addresses") for each in entries if _gets_address(each.to_dict()))

    # -- one object --------------------------------------------------------------------------------------------------

    def _each(self, verb: Callable[[Manifest], None], told: Sequence[Manifest], what: str) -> None:
        refuse([fault for each in told for fault in self._tried(verb, each)], what)

    def _tried(self, verb: Callable[..., object], one: Manifest, *more: object) -> Iterator[Fault]:
        """The fault that it is, if it is refused."""
        try:
            verb(one, *more)
        except (ApiException, dynamic.exceptions.ResourceNotFoundError) as error:
            yield Fault(Place(one.file), f"{one.kind} {one.namespace}/{one.name}", _said(error))

    def _create(self, one: Manifest, status: Json | None = None) -> None:
        kind = self._kind(one)
        kind.create(body=_body(one), **_within(kind, one))
        if status:
            self._patch(kind.status, one, {"status": status})

    def _patch(self, kind: Any, one: Manifest, body: Json, **more: str) -> None:
        where = {"name": one.name, "namespace": one.namespace}
        kind.patch(body=body, **where, content_type="application/merge-patch+json", **more)

    def _replace(self, one: Manifest) -> None:
        kind, body = self._kind(one), _body(one)
        try:
            before = kind.get(name=one.name, **_within(kind, one))
        except dynamic.exceptions.NotFoundError:
            kind.create(body=body, **_within(kind, one))
            return
        body["metadata"] = body["metadata"] | {"resourceVersion": before.metadata.resourceVersion}
        kind.replace(body=body, **_within(kind, one))

    def _judge(self, one: Manifest) -> None:
        """Written again without effect: whoever judges is asked."""
        self._patch(self._kind(one), one, {"spec": one.document.get("spec", {})}, dry_run="All")

    def _make(self, document: Json) -> None:
        """It is there, from before or from now."""
        kind = self._api.resources.get(api_version=document["apiVersion"], kind=document["kind"])
        try:
            kind.create(body=document, namespace=document["metadata"].get("namespace"))
        except ApiException as error:
            if error.status != _CONFLICT:
                raise

    def _kind(self, one: Manifest) -> Any:
        return self._api.resources.get(api_version=one.api, kind=one.kind)

    def _established(self) -> set[str]:
        kind = self._api.resources.get(api_version="apiextensions.k8s.io/v1", kind="CustomResourceDefinition")
        found = {each.metadata.name: each.status.conditions or [] for each in kind.get().items}
        holds = ("Established", "True")
        return {name for name, all_ in found.items() if holds in {(each.type, each.status) for each in all_}}

    def _awaited(self, what: str, asked: Callable[[], Found]) -> Found:
        return awaited(what, asked, self._well)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """An API server that is asked inside and does not answer, or has another answer than it must, is a TestbedError."""
    try:
        yield
    except (urllib3.exceptions.HTTPError, ApiException) as error:
        raise errors.TestbedError(
            f"failed ({_said(error)})", place="the API server", step="see `meshdns logs`"
        ) from None


def awaited(what: str, asked: Callable[[], Found], well: Well) -> Found:
    """What is true at last of something that starts. Raises TestbedError, or what `well` raises meanwhile."""
    deadline = time.monotonic() + TIMEOUT_S
    why = ""
    while time.monotonic() < deadline:
        try:
            if found := asked():
                return found
        except (ApiException, urllib3.exceptions.HTTPError, dynamic.exceptions.DynamicApiError, KeyError) as error:
            why = f" ({_said(error)})"
        well()
        time.sleep(_POLL_S)
    raise errors.TestbedError(f"did not come up within {TIMEOUT_S} s{why}", place=what, step="see `meshdns logs`")


def account(pod: Manifest) -> str:
    """The service account of a Pod."""
    return str(pod.document["spec"].get("serviceAccountName", "default"))


def _body(one: Manifest) -> Json:
    """As a person would write it: what others write of it is left out, and a Pod is on a node, with an account."""
    body = {key: value for key, value in one.document.items() if key != "status"}
    body["metadata"] = {key: value for key, value in body["metadata"].items() if key != "creationTimestamp"}
    if one.kind == "Pod":
        body["spec"] = {"nodeName": NODE, "serviceAccountName": account(one), **body["spec"]}
    return body


def _within(kind: Any, one: Manifest) -> dict[str, str]:
    return {"namespace": one.namespace} if kind.namespaced else {}


def _plain(kind: str, name: str, namespace: str = "") -> Json:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def _status(one: Manifest, world: World) -> Json | None:
    """What others than a person say of it: of a Pod the kubelet, of the others what the manifest says."""
    if one.kind != "Pod":
        return one.document.get("status")
    address, ready = one.document["status"]["podIP"], world.named(one.name).ready
    where = {"podIP": address, "podIPs": [{"ip": address}]}
    return {"phase": "Running", **where, "conditions": _conditions(ready=ready)}


def _conditions(*, ready: bool) -> list[Json]:
    """Of a Pod that runs."""
    holds = {"Initialized": True, "PodScheduled": True, "ContainersReady": ready, "Ready": ready}
    return [{"type": each, "status": str(value)} for each, value in holds.items()]


def _gets_address(entry: Json) -> bool:
    """As Istio's allocator decides."""
    spec, labels = entry["spec"], entry["metadata"].get("labels") or {}
    refused = str(labels.get("networking.istio.io/enable-autoallocate-ip", "")).lower() == "false"
    hosts = [each for each in spec["hosts"] if not each.startswith("*")]
    return bool(hosts) and not refused and not spec.get("addresses") and spec.get("resolution", "NONE") != "NONE"


def _said(error: Exception) -> str:
    """The API server's own sentence."""
    if isinstance(error, dynamic.exceptions.ResourceNotFoundError):
        return "the API server knows no such kind"
    try:
        return " ".join(str(json.loads(getattr(error, "body", "") or "")["message"]).split())
    except (ValueError, KeyError, TypeError):
        return str(error)
