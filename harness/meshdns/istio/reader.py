"""Files and folders of YAML to `Resources`, or every fault at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from meshdns.core.schema import Document, Fault, Field, Fields, Labels, Place, is_host, is_label, refuse
from meshdns.istio import coherence, documents, kinds, policies, resources, routes
from meshdns.istio.resources import Meta, Resource, Resources

SUFFIXES = (".yaml", ".yml")
ISTIO = ("networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3")
_READERS: dict[str, tuple[tuple[str, ...], Callable[[Meta, Fields], Resource]]] = {
    "Service": (("v1",), kinds.service),
    "EndpointSlice": (("discovery.k8s.io/v1",), kinds.endpoint_slice),
    "Pod": (("v1",), kinds.pod),
    "ServiceEntry": (ISTIO, kinds.service_entry),
    "VirtualService": (ISTIO, routes.virtual_service),
    "DestinationRule": (ISTIO, policies.destination_rule),
    "PeerAuthentication": (("security.istio.io/v1", "security.istio.io/v1beta1"), policies.peer_authentication),
    "Sidecar": (ISTIO, policies.sidecar),
    "EnvoyFilter": (ISTIO, policies.envoy_filter),
}
# What the injector writes down of itself; every Pod with a sidecar has them.
_INJECTED = ("sidecar.istio.io/status", "istio.io/rev")
INJECT, PROXY_CONFIG = "sidecar.istio.io/inject", "proxy.istio.io/config"
_OF_PODS = (
    INJECT, PROXY_CONFIG, "sidecar.istio.io/interceptionMode", "traffic.sidecar.istio.io/excludeInboundPorts",
)  # fmt: skip
_PASSED_OVER = ("Namespace", "ConfigMap", "ServiceAccount")  # of Kubernetes; what they say is not the mesh's
# What an API server adds to a stored object; it says nothing about the mesh.
_SERVER_FIELDS = (
    "uid", "resourceVersion", "generation", "managedFields", "selfLink", "ownerReferences", "generateName",
    "finalizers", "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip


def read(paths: Sequence[Path]) -> Resources:
    """The resources of files, and of every YAML file in folders and below; InputError names every fault."""
    texts: dict[str, str] = {}
    faults: list[Fault] = []
    for path in dict.fromkeys(file for given in paths for file in _files(given, faults)):
        try:
            texts[str(path)] = path.read_text(encoding="utf-8-sig")  # a byte-order mark is no content
        except UnicodeDecodeError as error:
            faults.append(Fault(Place(str(path)), "", f"not UTF-8 text at byte {error.start}"))
        except OSError as error:
            faults.append(Fault(Place(str(path)), "", f"cannot be read: {error.strerror}"))
    return parse(texts, faults)


def parse(texts: Mapping[str, str], before: Sequence[Fault] = ()) -> Resources:
    """The resources of YAML texts, each under the name that messages use for it; InputError names every fault."""
    faults = [*before]
    found: list[Resource] = []
    for file, text in texts.items():
        for document in documents.parse(text, file, faults):
            found += _resources(Field(document.root, "", document, faults), document, faults)
    coherence.names(found, faults)
    refuse(faults)  # what stands across resources means something only when each of them is sound
    everything = resources.collect(found)
    coherence.check(everything, faults)
    refuse(faults)
    return everything


def _files(path: Path, faults: list[Fault]) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not found:
        faults.append(Fault(Place(str(path)), "", "the folder holds no YAML file", f"name one ending in {SUFFIXES[0]}"))
    return found


def _resources(field: Field, document: Document, faults: list[Fault]) -> list[Resource]:
    if isinstance(field.data, dict) and field.data.get("kind") == "List":
        with field.fields() as top:
            top.ignore("kind", "metadata")
            top.choice("apiVersion", ("v1",))
            return [one for item in top.each("items") for one in _resources(item, document, faults)]
    found = _resource(field)
    return [found] if found else []


def _resource(field: Field) -> Resource | None:
    with field.fields() as top:
        kind_field, version = top.need("kind"), top.need("apiVersion")
        top.ignore("metadata", "status")
        kind = kind_field.text() if kind_field else ""
        if kind in _PASSED_OVER:
            top.ignore(*top.data)
            return None
        if kind not in _READERS:
            top.ignore(*top.data)
            if kind_field and kind:
                kind_field.fault(f"the kind {kind} is not supported", f"supported: {', '.join(_READERS)}, List")
            return None
        versions, reader = _READERS[kind]
        if version:
            version.choice(versions)
        return reader(_meta(kind, top), top)


def _meta(kind: str, top: Fields) -> Meta:
    with top.within("metadata") as meta:
        name = kinds.named(meta.need("name"), "a name", is_label if kind == "Service" else is_host)
        namespace = meta.get("namespace")
        where = kinds.named(namespace, "a name") if namespace else "default"
        meta.ignore(*_SERVER_FIELDS)
        notes = _annotations(meta, kind)
        created = meta.get("creationTimestamp")
        made_s = created.time_s() if created else 0
        return Meta(kind, where, name, made_s, meta.labels("labels"), notes, top.at.place, top.at.path)


def _annotations(meta: Fields, kind: str) -> Labels:
    """Istio's of a Pod; others that would steer Istio are not silently dropped, the rest changes nothing."""
    field = meta.get("annotations")
    if field is None:
        return ()
    honoured = _OF_PODS if kind == "Pod" else ()
    for key, child in field.pairs().items():
        if key.partition("/")[0].endswith("istio.io") and key not in (*_INJECTED, *honoured):
            child.fault("Istio's annotations are not supported", "remove it")
    return tuple((key, value) for key, value in field.labels() if key in honoured)
