"""Other meshes' conventions: their own rules and ours do the same to a packet, and the documentation says how often."""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import asking
import pytest
import theirs
from hypothesis import given, settings
from hypothesis import strategies as st

from meshdns.dnsproxy import options as dnsproxy
from meshdns.interception import conventions, iptables, nftables, ruleset, verdict
from meshdns.interception.conventions import ISTIO
from meshdns.interception.options import Options
from meshdns.interception.refusal import Refusal

PROJECT = Path(__file__).parents[2]
DOCUMENT = (PROJECT / "docs" / "conventions.md").read_text()


@given(st.sampled_from(theirs.ALL), st.data())
@settings(max_examples=200, deadline=None)
def test_their_rules_and_ours_do_the_same_but_for_what_is_named(one: theirs.Fixture, data: st.DataObject) -> None:
    packet = theirs.pools(one).packet(lambda items: data.draw(st.sampled_from(items)))
    packet = replace(packet, mark=data.draw(st.sampled_from([0, 1337])))
    if data.draw(st.booleans()):
        packet = replace(packet, destination_port=data.draw(st.integers(1, 65535)))
    if one.path in ("", packet.path):
        theirs.agrees(one, packet)


@pytest.mark.parametrize("mesh", theirs.MESHES)
def test_the_document_has_the_shares_that_are_computed(mesh: str) -> None:
    """Where this fails for good reasons, the row belongs into docs/conventions.md as it stands here."""
    found = theirs.tally(mesh)
    share = f"{found.agreeing / found.verdicts:.1%}"
    numbers = f"| {found.whole} of {found.fixtures} | {found.verdicts} | {share} |"
    (row,) = re.findall(rf"^\| {conventions.ALL[mesh].title} \|.*$", DOCUMENT, re.MULTILINE)
    assert numbers in row
    commits = theirs.COMMITS.findall((theirs.FOLDER / f"{mesh}.rules").read_text())
    assert [commit[:12] for commit in dict.fromkeys(commits)] == re.findall(r"\b[0-9a-f]{12}\b", row)


def test_a_difference_that_is_named_is_there() -> None:
    for one in theirs.ALL:
        rng, pool, left = Random(1), theirs.pools(one), set(one.differs)
        for packet in (pool.packet(rng.choice) for _ in range(5000)):
            if not left:
                break
            there, here = (verdict.judge(rules, packet) for rules in (one.theirs, one.ours))
            if theirs.said(there) != theirs.said(here):
                left -= {name for name in left if theirs.DIFFERENCES[name](one.theirs, there, here)}
        assert not left, f"{one}: {left}"
    assert {name for one in theirs.ALL for name in one.differs} == set(theirs.DIFFERENCES)
    assert all(f"`{name}`" in DOCUMENT for name in theirs.DIFFERENCES)


@pytest.mark.parametrize("one", [one for one in theirs.ALL if "dns-elsewhere" not in one.differs], ids=str)
def test_their_rules_are_read_as_the_kernel_reads_them(one: theirs.Fixture) -> None:
    asking.needs_kernel()
    rng = Random(str(one))
    owners = theirs.pools(one).owners
    sent = [packet for packet in asking.packets(rng, owners) if asking.family_of(packet) == one.family]
    outcomes = [(packet, verdict.judge(one.theirs, packet)) for packet in sent]
    load = [asking.PASSED_THROUGH, ([f"{asking.TOOLS[one.family]}-restore", "--noflush"], one.restore())]
    seen = asking.in_namespace("", load, sent, len(sent))
    for name, arrives in (("left", False), ("arrived", True)):
        assert seen[name] == sorted(
            [
                asking.PROTOCOLS[packet.protocol],
                packet.source_port,
                outcome.destination_port,
                outcome.mark,
                outcome.zone,
            ]
            for packet, outcome in outcomes
            if outcome.arrives == arrives
        )


@pytest.mark.parametrize("mesh", conventions.ALL)
def test_a_mesh_has_names_of_its_own(mesh: str) -> None:
    """Rules of two meshes in one pod are refused by these; text that names another's would load where it should not."""
    value, options = conventions.ALL[mesh], Options.of(mesh)
    rules = ruleset.build(options, "ipv4")
    text = iptables.render(rules) + nftables.render(rules)
    chains = set(re.findall(r"[A-Z]+_[A-Z_]+", text))
    assert chains <= value.chains.names() <= ruleset.OUR_CHAINS
    assert set(re.findall(r"inet (\S+)", text)) == {f"{mesh}-proxy-nat"}
    assert str(value.outbound_port) in text
    assert str(value.inbound_port) in text or mesh == "istio"  # whose generator captures nothing unless told to


def test_outbound_tproxy_is_istios_alone() -> None:
    with pytest.raises(Refusal, match="no mark under Kuma's conventions: leave it out"):
        ruleset.build(Options.of("kuma"), "ipv4", outbound_tproxy=True)


def test_a_number_of_istios_is_changed_in_one_place(tmp_path: Path) -> None:
    """In its conventions, and the rules, their options and the programs' settings follow."""
    shutil.copytree(Path(ruleset.__file__).parent, tmp_path / "interception")
    module = tmp_path / "interception" / "conventions.py"
    module.write_text(module.read_text().replace("outbound_port=15001", "outbound_port=4140"))
    for mechanism, said in (
        ("iptables", "REDIRECT --to-ports 4140\n"),
        ("nftables", "redirect to :4140\n"),
        ("ebpf", '"outbound_port": 4140'),
    ):
        command = [sys.executable, "-S", "-m", "interception", "--mechanism", mechanism]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
        assert said in done.stdout
        assert "15001" not in done.stdout


def test_ports_and_chains_have_one_owner() -> None:
    """No other module spells a number or a name of a mesh; the DNS proxy runs without this package."""
    meshes = [asdict(mesh) for mesh in conventions.ALL.values()]
    numbers = {value for mesh in meshes for key, value in mesh.items() if key.endswith("_port") and value}
    numbers |= {port for mesh in meshes for port in mesh["excluded_inbound"]}
    numbers |= {mesh["uid"] for mesh in meshes} | {ISTIO.self_mark, ISTIO.output_mark, ISTIO.route_table}
    numbers -= {conventions.CONSUL.inbound_port}  # a round number
    names = ruleset.OUR_CHAINS | {ISTIO.passthrough_v4, ISTIO.passthrough_v6} | {str(number) for number in numbers}
    harness = PROJECT / "harness"
    found = {
        (str(file.relative_to(harness / "meshdns")), node.value)
        for file in harness.rglob("*.py")
        if file != Path(conventions.__file__)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and not isinstance(node.value, bool) and node.value in numbers | names
    }
    assert found == set()
    assert {address.rpartition(":")[2] for address in dnsproxy.LISTEN.values()} == {str(ISTIO.dns_port)}


def test_a_value_is_all_that_a_mesh_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An invented one: as Linkerd, with chains where it has none."""
    chains = conventions.Chains("OWN_IN", "OWN_OUT", "OWN_TO_PROXY")
    own = dataclasses.replace(conventions.LINKERD, name="own", outbound_port=7001, chains=chains)
    monkeypatch.setitem(conventions.ALL, "own", own)
    text = iptables.render(ruleset.build(Options.of("own"), "ipv4"))
    assert "-A OWN_TO_PROXY -p tcp -j REDIRECT --to-ports 7001" in text
    assert "-A OWN_OUT -j OWN_TO_PROXY" in text
    assert "-A OWN_IN -p tcp -j REDIRECT --to-ports 4143" in text
