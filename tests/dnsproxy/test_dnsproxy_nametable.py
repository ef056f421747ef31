"""The name table: which names are ours, and what text is refused."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshdns.dnsproxy import nametable, wire

SCOPE = nametable.Scope("shop", "cluster.local", ("shop.svc.cluster.local", "svc.cluster.local"))


def read(text: str, scope: nametable.Scope = SCOPE) -> nametable.NameTable:
    work = nametable.read(text, scope)
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]


def table(scope: nametable.Scope = SCOPE, **hosts: Any) -> nametable.NameTable:
    return read(json.dumps({"table": hosts}), scope)


def find(what: nametable.NameTable, name: str) -> tuple[str, str] | None:
    """The last byte of the address, and the alias."""
    found = what.find(wire.encode_name(name))
    return found and (str(found.addresses.v4[-1]), wire.show_name(found.alias) if found.alias else "")


def kubernetes(name: str, namespace: str, ip: str, **more: Any) -> dict[str, Any]:
    return {"ips": [ip], "registry": "Kubernetes", "namespace": namespace, "shortname": name, **more}


def test_a_host_named_exactly_comes_before_every_other_reading() -> None:
    what = table(**{
        "api.test": {"ips": ["192.0.2.1"]},
        "api.test.shop.svc.cluster.local": {"ips": ["192.0.2.2"]},  # also the expansion of the first
        "web.shop.svc.cluster.local": kubernetes("web", "shop", "192.0.2.3"),
        "web": {"ips": ["192.0.2.4"]},  # also the short name of the third
        "*.test": {"ips": ["192.0.2.5"]},
    })  # fmt: skip
    assert find(what, "api.test.shop.svc.cluster.local") == ("2", "")
    assert find(what, "web") == ("4", "")
    assert find(what, "web.shop") == ("3", "")
    assert find(what, "api.test") == ("1", "")
    assert find(what, "b.api.test") == ("5", "")
    assert find(what, "test") is None


def test_the_search_domain_is_taken_off_once_and_at_a_label_only() -> None:
    what = table(**{"api.test": {"ips": ["192.0.2.1"]}, "*.wild.test": {"ips": ["192.0.2.2"]}})
    assert find(what, "api.test.shop.svc.cluster.local") == ("1", "api.test")
    assert find(what, "a.wild.test.shop.svc.cluster.local") == ("2", "a.wild.test")
    assert find(what, "wild.test.shop.svc.cluster.local") is None
    assert find(what, "api.test.svc.cluster.local") is None  # the second search domain
    assert find(what, "api.test.shop.svc.cluster.local.shop.svc.cluster.local") is None
    assert find(what, "api.testshop.svc.cluster.local") is None
    assert find(what, "shop.svc.cluster.local") is None
    # A label that holds the bytes of the search domain's labels is no search domain.
    assert what.find(b"\3api\4test\x18x" + wire.encode_name("shop.svc.cluster.local")) is None


def test_all_search_domains_on_request() -> None:
    scope = nametable.Scope("shop", "cluster.local", SCOPE.search, all_search=True)
    what = table(scope, **{"api.test": {"ips": ["192.0.2.1"]}})
    assert find(what, "api.test.svc.cluster.local") == ("1", "api.test")
    assert find(what, "api.test.shop.svc.cluster.local") == ("1", "api.test")


def test_the_longer_wildcard_wins_also_across_the_search_domain() -> None:
    what = table(**{
        "*.test": {"ips": ["192.0.2.1"]},
        "*.a.test": {"ips": ["192.0.2.2"]},
        "*.cluster.local": {"ips": ["192.0.2.3"]},
        "*.b.test.shop.svc.cluster.local": {"ips": ["192.0.2.4"]},
    })  # fmt: skip
    assert find(what, "x.y.a.test") == ("2", "")
    assert find(what, "a.test") == ("1", "")
    assert find(what, "x.test.shop.svc.cluster.local") == ("1", "x.test")
    assert find(what, "q.b.test.shop.svc.cluster.local") == ("4", "")
    assert find(what, "x.other.shop.svc.cluster.local") == ("3", "")


def test_short_forms_are_those_of_the_own_cluster_and_namespace() -> None:
    what = table(**{
        "web.shop.svc.cluster.local":
            kubernetes("web", "shop", "192.0.2.1", alt_hosts=["web.shop.svc.clusterset.local"]),
        "pay.bank.svc.cluster.local": kubernetes("pay", "bank", "192.0.2.2"),
        "far.bank.svc.cluster.remote": kubernetes("far", "bank", "192.0.2.3", alt_hosts=["far.alt"]),
        "ext.shop.svc.cluster.local": {**kubernetes("ext", "shop", "192.0.2.4"), "registry": "External"},
    })  # fmt: skip
    ours = ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local", "web.shop.svc.clusterset.local"]
    ours += ["pay.bank", "pay.bank.svc", "far.bank.svc.cluster.remote", "ext.shop.svc.cluster.local"]
    others = ["web.shop.svc.cluster", "pay", "far", "far.bank", "far.bank.svc", "far.alt", "ext", "ext.shop"]
    assert [name for name in ours if find(what, name) is None] == []
    assert [name for name in others if find(what, name)] == []


def test_a_host_that_ends_in_a_dot_has_no_other_forms() -> None:
    web = kubernetes("web", "shop", "192.0.2.1", alt_hosts=["web.alt"])
    what = table(**{"web.shop.svc.cluster.local.": web})
    assert find(what, "web.shop.svc.cluster.local") == ("1", "")
    assert [name for name in ("web", "web.shop", "web.shop.svc", "web.alt") if find(what, name)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "{ is missing"),
        ("{}", 'there is no "table"'),
        ('{"table": []}', "{ is missing"),
        ('{"table": {"a": 1}}', "the entry of 'a' is not an object"),
        ('{"table": {"a": {"ips": "192.0.2.1"}}}', "ips of 'a' is not a list of strings"),
        ('{"table": {"a": {"ips": [1]}}}', "ips of 'a' is not a list of strings"),
        ('{"table": {"a": {"ips": ["192.0.2.1"], "shortname": 3}}}', "shortname of 'a' is not a string"),
        ('{"table": {1: {}}}', "a name in quotes is missing"),
        ('{"table": {}} x', "something follows"),
        ('{"table": {"a": {}', "line 1 column 19"),
        ('{"table": {"a": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_text_that_is_no_table_is_refused_by_place(text: str, said: str) -> None:
    with pytest.raises(nametable.TableError, match=r".") as caught:
        read(text)
    assert said in str(caught.value)


def test_a_number_of_any_length_is_none_of_our_business() -> None:
    what = table(**{"api.test": {"ips": ["192.0.2.1"]}})
    with_number = read('{"revision": %s, "table": {"api.test": {"ips": ["192.0.2.1"]}}}' % ("1" * 5000))
    assert with_number.names == what.names


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(string.printable, max_size=6)
    | st.sampled_from(["192.0.2.1", "::1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["table", "ips", "a.test", "*.b"]) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(_JSON, st.sampled_from([None, 1]))
def test_any_json_is_read_as_a_whole_or_refused(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    try:
        what = read(text)
    except nametable.TableError:
        return
    assert isinstance(value, dict)
    assert what.hosts <= len(value["table"])


@given(st.text(max_size=40))
def test_any_text_is_a_table_or_refused(text: str) -> None:
    with pytest.raises(nametable.TableError):
        read(text)


_LABEL = st.text("ab-*", min_size=1, max_size=3)
_NAME = st.lists(_LABEL, min_size=1, max_size=5).map(".".join)


@given(st.dictionaries(_NAME.filter(lambda host: host != "*"), st.integers(1, 250), max_size=8), _NAME, st.booleans())
def test_a_name_is_found_as_the_rules_say(hosts: dict[str, int], name: str, below: bool) -> None:
    """Against the rules written a second time, over names as text and with everything expanded beforehand."""
    what = table(**{host: {"ips": [f"192.0.2.{ip}"]} for host, ip in hosts.items()})
    search = "shop.svc.cluster.local"
    expanded = {f"{host}.{search}": (str(ip), host) for host, ip in hosts.items()}
    known = expanded | {host: (str(ip), "") for host, ip in hosts.items()}
    asked = f"{name}.{search}" if below else name
    want = known.get(asked)
    labels = asked.split(".")
    for start in range(1, len(labels)):
        if want is None and (hit := known.get(".".join(["*", *labels[start:]]))):
            want = hit[0], name if hit[1] else ""
    assert find(what, asked) == want
