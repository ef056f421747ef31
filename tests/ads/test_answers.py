"""Files of JSON become the messages that sidecars are told, each by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from meshdns.ads import answers
from meshdns.ads.types import CDS, NDS, URL, name_of
from meshdns.core.world import Nets
from meshdns.lab import recording
from shipped import WORLD

TABLE = {"table": {"web.shop.svc.cluster.local": {"ips": ["10.96.1.10"], "registry": "Kubernetes"}}}


def test_the_kept_recording_is_told_as_it_stands(tmp_path: Path) -> None:
    kept = recording.read()
    for pod in WORLD.of(()).injected:
        (tmp_path / f"{pod.pod}.json").write_text(json.dumps(kept.answers(pod.pod, Nets())))
    found = answers.read(tmp_path)
    assert found.keys() == {pod.pod for pod in WORLD.of(()).injected}
    for pod, told in found.items():
        given = kept.answers(pod, Nets())
        for url, resources in given.items():
            assert [*told[url]] == [name_of(each) for each in resources]
            assert [answers.unpacked(each) for each in told[url].values()] == resources


def test_endpoints_go_by_the_name_of_their_cluster_and_a_name_table_by_none() -> None:
    assert [name_of(each) for each in ({"clusterName": "a"}, {"name": "b"}, TABLE)] == ["a", "b", ""]
    answers.know([NDS.removeprefix(URL)])
    [(name, message)] = answers.told({NDS: [TABLE]})[NDS].items()
    assert name == ""
    assert answers.unpacked(message) == {"@type": NDS, **TABLE}


def test_what_is_no_message_is_refused() -> None:
    answers.know(["envoy.config.cluster.v3.Cluster"])
    with pytest.raises(json_format.ParseError, match="colour"):
        answers.told({CDS: [{"name": "a", "colour": "red"}]})
