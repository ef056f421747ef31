"""Virtual IPs: nobody's address moves because somebody else came or went."""

from __future__ import annotations

import argparse
import ipaddress
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import generators
from generators import document
from meshdns.core import errors
from meshdns.istio import reader, verbs, vips
from meshdns.istio.vips import Allocation

SMALL = "240.240.7.0/24"  # 254 usable addresses
KEYS = st.sampled_from([f"shop/e{n}/h{n}.example.com" for n in range(12)])


@given(st.lists(st.sets(KEYS), max_size=12), st.sets(st.integers(0, 60)))
def test_survivors_keep_their_addresses_through_any_history(history: list[set[str]], own: set[int]) -> None:
    reserved = [f"240.240.7.{n}" for n in own]
    allocation = Allocation()
    for present in history:
        before = allocation.addresses
        allocation = vips.assign(allocation, sorted(present), reserved, SMALL)
        assert set(allocation.addresses) == present
        assert len(set(allocation.addresses.values())) == len(present)
        for key, address in allocation.addresses.items():
            assert before.get(key, address) == address
            assert ipaddress.ip_address(address) in ipaddress.ip_network(SMALL)
            assert address not in reserved
            assert not address.endswith((".0", ".255"))


@settings(max_examples=20, deadline=None)  # each step waits for the disk
@given(st.lists(st.sets(KEYS), max_size=6))
def test_a_stored_allocation_goes_on_as_if_it_had_stayed_in_memory(history: list[set[str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state" / "vips.json"
        kept = Allocation()
        for present in history:
            kept = vips.assign(kept, sorted(present))
            stored = vips.assign(vips.load(path), sorted(present))
            vips.save(path, stored)
            assert stored == kept
        assert vips.assign(kept, sorted(kept.addresses)) == kept


def test_a_freed_address_is_given_out_again_last() -> None:
    first = vips.assign(Allocation(), ["a", "b"], cidr=SMALL)
    assert list(first.addresses.values()) == ["240.240.7.1", "240.240.7.2"]
    second = vips.assign(vips.assign(first, ["b"], cidr=SMALL), ["b", "c"], cidr=SMALL)
    assert second.addresses["c"] == "240.240.7.3"
    full = vips.assign(second, ["b", "c", *map(str, range(252))], cidr=SMALL)
    assert full.addresses["251"] == "240.240.7.1"


def test_an_exhausted_range_is_said_and_a_free_place_ends_it() -> None:
    names = list(map(str, range(254)))
    full = vips.assign(Allocation(), names, cidr=SMALL)
    with pytest.raises(errors.InputError, match=r"no virtual IP is left in 240.240.7.0/24 for more: 254 are given"):
        vips.assign(full, [*names, "more"], cidr=SMALL)
    assert vips.assign(full, [*names[1:], "more"], cidr=SMALL).addresses["more"] == full.addresses["0"]
    with pytest.raises(errors.InputError):
        vips.assign(Allocation(), names, ["240.240.7.200"], SMALL)


def test_a_users_own_address_wins_and_moves_nobody_else() -> None:
    first = vips.assign(Allocation(), ["a", "b", "c"])
    second = vips.assign(first, ["a", "b", "c"], [first.addresses["b"], "240.240.1.0/24", "10.0.0.0/8"])
    assert second.addresses["b"] == "240.240.0.4"
    assert {**second.addresses, "b": ""} == {**first.addresses, "b": ""}


def test_the_whole_range_holds_all_but_the_first_and_last_of_each_block() -> None:
    names = list(map(str, range(65_024)))
    assert len(set(vips.assign(Allocation(), names).addresses.values())) == 65_024


def entry(name: str, host: str, label: str = "", **spec: object) -> generators.Document:
    spec = {"hosts": [host], "resolution": "DNS", "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], **spec}
    labels = {"networking.istio.io/enable-autoallocate-ip": label} if label else None
    return document("ServiceEntry", "networking.istio.io/v1", "shop", name, labels=labels, spec=spec)


def test_only_concrete_hosts_without_an_address_of_their_own_get_one() -> None:
    ends = [{"address": "240.240.0.9"}]
    given_ = reader.parse({"x": generators.text([
        entry("a", "a.example.com"),
        entry("b", "b.example.com", addresses=["10.0.0.1"]),
        entry("c", "c.example.com", resolution="NONE"),
        entry("d", "*.example.com", endpoints=ends),
        entry("e", "e.example.com", label="false"),
        entry("f", "f.example.com", label="true"),
        entry("g", "g.example.com", hosts=["g.example.com", "h.example.com"]),
    ])})  # fmt: skip
    assert vips.wanted(given_) == [
        "shop/a/a.example.com", "shop/f/f.example.com", "shop/g/g.example.com", "shop/g/h.example.com",
    ]  # fmt: skip
    assert set(vips.reserved(given_)) == {"10.0.0.1", "240.240.0.9"}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"version": 2, "addresses": {}, "last": ""}', '{"version": 1, "addresses": 1, "last": ""}',
     '{"version": 1, "addresses": {"a": "x"}, "last": ""}',
     '{"version": 1, "addresses": {"a": "1.2.3.4", "b": "1.2.3.4"}, "last": ""}', '{"version": ' + "[" * 30_000],
)  # fmt: skip
def test_a_damaged_file_is_named_and_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vips.json"
    path.write_text(text)
    with pytest.raises(errors.DataError, match="not a table of virtual IPs"):
        vips.load(path)
    assert path.read_text() == text


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vips.json"
    old = vips.assign(Allocation(), ["a"])
    vips.save(path, old)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(errors.StorageError, match="cannot be written: No space left"):
        vips.save(path, vips.assign(old, ["a", "b"]))
    assert vips.load(path) == old
    assert list(tmp_path.iterdir()) == [path]


def test_the_addresses_in_force_are_taken_from_a_status_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh, page = tmp_path / "mesh.yaml", tmp_path / "status.json"
    mesh.write_text(
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: e, namespace: shop}, spec: {hosts: "
        "[db.example.com], resolution: DNS, ports: [{number: 5432, name: tcp, protocol: TCP}]}}"
    )
    page.write_text(json.dumps({"nodes": {}, "virtual_ips": {"shop/e/db.example.com": "240.240.7.7"}}))

    def said(virtual_ips: Path | None) -> str:
        who = {"mode": "2", "pod": None, "namespace": None}
        options = argparse.Namespace(target="db.example.com", mesh=mesh, virtual_ips=virtual_ips, **who)
        assert verbs.explain_verb(options) == 0
        return capsys.readouterr().out

    assert "240.240.7.7_5432" in said(page)
    assert "--virtual-ips" not in said(page)
    assert "--virtual-ips takes those in force" in said(None)
