"""`meshdns validate` and `meshdns explain`: their options, and what they print. Neither needs a testbed."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from meshdns.core import errors, paths
from meshdns.istio import explain, outbound, reader, registry, vips
from meshdns.istio.registry import Registry
from meshdns.istio.resources import Resources

MESH = paths.COMPOSE / "worlds"
# Who answers DNS, as people call it: without a mesh, mode 1, mode 2.
MODES = {"none": (False, "cluster"), "1": (True, "cluster"), "2": (True, "agent"), "2-envoy": (True, "envoy")}


def validate_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `validate`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML files, or folders of them")


def validate(options: argparse.Namespace) -> int:
    """Print what was read, and which services lose their listener; InputError names every fault."""
    given = reader.read(options.files)
    counts = Counter(one.meta.kind for one in given)
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    print(f"valid: {shown or 'nothing in it'}")
    model = build(given)
    for mode, dns_proxy in (("mode 1", False), ("mode 2", True)):
        for one in outbound.build(model, outbound.Client("default", dns_proxy=dns_proxy)).conflicts:
            print(f"note: in {mode}, {one.loser} loses listener {one.listener} to {one.winner}: {one.why}")
    for where, cluster in _missing(model):
        print(f"note: sidecars in {where} have no cluster {cluster}, so what is routed there fails; a DestinationRule "
              "in the namespace of its host is seen by all")  # fmt: skip
    for line in _patched(given):
        print(line)
    return 0


def _patched(given: Resources) -> Iterator[str]:
    for one in given.filters:
        yield f"note: what EnvoyFilter {one.meta.namespace}/{one.meta.name} patches is not seen here"


def _missing(model: Registry) -> Iterator[tuple[str, str]]:
    """Where routes lead to a cluster that is not there: a namespace with rules of its own, or any without."""
    ruled = {rule.meta.namespace for rule in model.rules}
    for namespace in (*sorted(ruled), ""):  # no namespace is called so
        client = outbound.Client(namespace)
        for cluster in outbound.dangling(outbound.build(model, client)):
            yield (f"namespace {namespace}" if namespace else "any other namespace"), cluster


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `explain`."""
    parser.add_argument("target", metavar="HOST[:PORT]", help="a name as an application writes it, or an address")
    parser.add_argument("--mode", choices=MODES,
                        help="1: the cluster DNS answers, 2: Istio's DNS proxy, 2-envoy: Envoy's DNS filter; none: "
                        "without a sidecar (default: what the pod's annotations say, else 1)")  # fmt: skip
    parser.add_argument("--pod", metavar="[NAMESPACE/]NAME", help="the caller, one of the YAML's Pods")
    parser.add_argument("--namespace", help="the caller's (default: that of the pod, or the only one of the YAML)")
    parser.add_argument("--mesh", type=Path, default=MESH, metavar="FOLDER", help="the YAML (default: the testbed's)")


def explain_verb(options: argparse.Namespace) -> int:
    """Print which way the name takes."""
    host, port = target(options.target)
    given = reader.read([options.mesh])
    model = build(given)
    found = explain.explain(model, host, port, caller(given, options.pod, options.namespace, options.mode))
    print("\n".join([*found.lines, *_patched(given)]))
    given_new = {one.virtual_ip for one in model.services} - {*vips.allocated(given).values()}
    if given_new & set(found.addresses):
        print("\nthe virtual IP is the one that a new control plane would give: no status of the entry says another")
    return 0


def caller(given: Resources, pod: str | None, namespace: str | None, mode: str | None) -> explain.Caller:
    """Who asks: a Pod of the YAML with its labels and annotations, or any pod of a namespace. Raises InputError."""
    if pod is None:
        spaces = {one.meta.namespace for one in given} - {"kube-system"}
        where = namespace or (spaces.pop() if len(spaces) == 1 else "default")
        sidecar, dns = MODES[mode or "1"]
        return explain.Caller(f"a pod of namespace {where}", where, sidecar=sidecar, dns=dns)
    space, _, name = pod.rpartition("/")
    space = space or namespace or ""
    found = [one for one in given.pods if one.meta.name == name and space in ("", one.meta.namespace)]
    if len(found) != 1:
        fact = f"there {'are several Pods' if found else 'is no Pod'} {pod}"
        raise errors.InputError(fact, place="--pod", step="name one of the YAML, as NAMESPACE/NAME")
    [meta] = [one.meta for one in found]
    notes = dict(meta.annotations)
    captured = "ISTIO_META_DNS_CAPTURE" in (config := notes.get(reader.PROXY_CONFIG, "")) and "true" in config
    said = ("1", "2")[captured] if notes.get(reader.INJECT) != "false" else "none"
    sidecar, dns = MODES[mode or said]
    return explain.Caller(f"{meta.namespace}/{meta.name}", meta.namespace, meta.labels, sidecar=sidecar, dns=dns)


def target(text: str) -> tuple[str, int | None]:
    """Host and port of HOST[:PORT]; an IPv6 address with a port stands in brackets."""
    host, colon, number = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1], None
    if not colon or (":" in host and not host.startswith("[")):
        return text, None
    if not (number.isascii() and number.isdigit() and len(number) <= 5 and 1 <= int(number) <= 65535):
        raise errors.InputError(f"{number!r} is not a port", place=text, step="give 1 to 65535, e.g. web.shop:80")
    return host.strip("[]"), int(number)


def build(given: Resources) -> Registry:
    """The model with virtual IPs for all that want one: those that stand in a status, or new ones."""
    return registry.build(given, vips.assign(vips.allocated(given), vips.wanted(given), vips.reserved(given)))
