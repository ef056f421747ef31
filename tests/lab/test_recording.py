"""A recording is the same for the same answers, whoever gave them in which order, and serves other networks too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from meshdns.ads.types import CDS, EDS, LDS, NDS, RDS, name_of
from meshdns.core import errors
from meshdns.core.world import Nets, World
from meshdns.lab import recording
from meshdns.lab.recording import Recording
from shipped import WORLD

USUAL, OTHER = Nets(), Nets("198.18.7", "198.19.7")


def told(own: str, nets: Nets) -> dict[str, list[dict[str, Any]]]:
    """What istiod tells a pod: one cluster that is everybody's, one listener that is its own."""
    return {
        CDS: [{"name": "outbound|80||web", "type": "EDS"}, {"name": "InboundPassthroughCluster"}],
        EDS: [{"clusterName": "outbound|80||web", "endpoints": [{"address": f"{nets.pods}.21", "port": 8080}]}],
        LDS: [{"name": f"{own}_8080", "address": own}],
        RDS: [{"name": "80", "domains": ["x.example", f"{nets.world}.80"]}],
        NDS: [{"table": {"web": {"ips": ["10.96.1.10", f"{nets.pods}.210"]}}}],
    }


def made(nets: Nets = USUAL) -> Recording:
    answers = {pod: told(f"{nets.pods}.{host}", nets) for pod, host in (("b", 42), ("a", 41))}
    return recording.of(WORLD, "1.2", {pod: {"INSTANCE_IPS": f"{nets.pods}.9"} for pod in answers}, answers, nets)


def test_what_pods_are_told_alike_stands_once() -> None:
    assert [each.pods for each in made().shared[CDS]] == [("a", "b"), ("a", "b")]
    assert [(each.pods, each.resource["name"]) for each in made().shared[LDS]] == [
        (("a",), "{pods}.41_8080"),
        (("b",), "{pods}.42_8080"),
    ]


def test_it_is_the_same_bytes_in_whichever_order_and_on_whichever_networks(tmp_path: Path) -> None:
    assert made(OTHER).files() == made().files()
    for file, text in made().files().items():
        (tmp_path / file).write_text(text)
    assert recording.read(tmp_path).files() == made().files()


def test_addresses_are_filled_in_and_no_others_are_touched() -> None:
    answers = made().answers("a", OTHER)
    given = {url: sorted(found, key=name_of) for url, found in told("198.18.7.41", OTHER).items()}
    assert answers == given


def test_a_pod_that_was_not_recorded_is_named() -> None:
    with pytest.raises(errors.InputError, match="c: was not recorded"):
        made().answers("c", Nets())


def test_the_one_that_is_named_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recording.read().files() != made().files()
    recording.write(made(), tmp_path)
    monkeypatch.setenv("MESHDNS_RECORDED", str(tmp_path))
    assert recording.read().files() == made().files()


def test_a_folder_without_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(errors.DataError, match=r"holds no recording .*meshdns record"):
        recording.read(tmp_path)


def edited(kind: str, name: str, **metadata: Any) -> World:
    """The shipped world, one of its manifests with other metadata."""
    found = []
    for each in WORLD.manifests:
        document = json.loads(json.dumps(each.document))
        if (document["kind"], document["metadata"]["name"]) == (kind, name):
            document["metadata"] |= metadata
        found.append(dataclasses.replace(each, document=document))
    return dataclasses.replace(WORLD, manifests=tuple(found))


def test_it_fits_a_world_of_which_istio_is_told_the_same() -> None:
    labels = {"a": "b"}
    assert made().fits(WORLD)
    assert made().fits(edited("Service", "web", annotations={"meshdns/backend": "x"}))
    assert made().fits(edited("ConfigMap", "meshdns", labels=labels))
    assert not made().fits(edited("Service", "web", labels=labels))
