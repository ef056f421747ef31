"""Virtual IPs: whoever has one keeps it, and nobody gets another's."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import generators
from generators import document
from meshdns.core import errors
from meshdns.istio import reader, vips

SMALL = "240.240.7.0/24"  # 254 usable addresses
KEYS = st.sampled_from([f"shop/e{n}/h{n}.example.com" for n in range(12)])


@given(st.sets(KEYS), st.sets(KEYS), st.sets(st.integers(0, 60)))
def test_who_has_an_address_keeps_it_and_nobody_gets_anothers(old: set[str], more: set[str], own: set[int]) -> None:
    reserved = [f"240.240.7.{n}" for n in own]
    before = vips.assign({}, sorted(old), reserved, SMALL)
    found = vips.assign(before, sorted(old | more), reserved, SMALL)
    assert set(found) == old | more
    assert len(set(found.values())) == len(found)
    assert {key: found[key] for key in before} == before
    for address in found.values():
        assert ipaddress.ip_address(address) in ipaddress.ip_network(SMALL)
        assert address not in reserved
        assert not address.endswith((".0", ".255"))


def test_an_exhausted_range_is_said() -> None:
    names = list(map(str, range(254)))
    full = vips.assign({}, names, cidr=SMALL)
    with pytest.raises(errors.InputError, match=r"no virtual IP is left in 240.240.7.0/24 for more: 254 are given"):
        vips.assign(full, [*names, "more"], cidr=SMALL)
    with pytest.raises(errors.InputError):
        vips.assign({}, names, ["240.240.7.200"], SMALL)


def test_a_users_own_address_wins_and_moves_nobody_else() -> None:
    first = vips.assign({}, ["a", "b", "c"])
    second = vips.assign(first, ["a", "b", "c"], [first["b"], "240.240.1.0/24", "10.0.0.0/8"])
    assert second["b"] == "240.240.0.4"
    assert {**second, "b": ""} == {**first, "b": ""}


def test_the_whole_range_holds_all_but_the_first_and_last_of_each_block() -> None:
    names = list(map(str, range(65_024)))
    assert len(set(vips.assign({}, names).values())) == 65_024


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
