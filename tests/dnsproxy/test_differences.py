"""The predicates of the differences, without the agent: where each holds, and that it does not hold near that."""

from __future__ import annotations

from functools import cache

import pytest
from tests.conformance import neighbours, proxies, questions, scripts
from tests.conformance.questions import Asked

from meshdns.dnsproxy import differences, wire
from meshdns.dnsproxy.differences import Difference
from meshdns.dnsproxy.situations import Seen, Situation, Surroundings

IDS = [difference.id for difference in differences.DIFFERENCES]
ELSEWHERE = {"no-servers", "untold", "pending"}  # of how the two were started, or how busy they are


def situation(asked: Asked, around: Surroundings, more: dict[str, scripts.Reply] | None = None) -> Situation:
    replies = scripts.said(asked.message, more or {}) if len(asked.message) > wire.HEADER else ()
    return Situation(asked.message, asked.tcp, around, replies)


@cache
def near() -> dict[str, list[Situation]]:
    around = Surroundings(neighbours.table(), proxies.SCOPE, servers=2)
    found: dict[str, list[Situation]] = {name: [] for name in IDS}
    for name, asked, reply in neighbours.messages():
        found[name].append(situation(asked, around, {neighbours.label(asked): reply} if reply else {}))
    return found


@pytest.mark.parametrize("difference", differences.DIFFERENCES, ids=IDS)
def test_a_difference_is_not_claimed_near_its_situations(difference: Difference) -> None:
    if difference.id in ELSEWHERE - {"pending"}:
        unknown = questions.query("known-x.upstream.test")
        for n in range(50):
            around = Surroundings({}, proxies.SCOPE, n % 2, n % 2 == 1, told=n % 4 > 1, port=5353)
            assert not difference.where(Situation(unknown, False, around))
        return
    assert len({x.message for x in near()[difference.id]}) >= 14  # the rest differs by transport
    assert len(near()[difference.id]) >= 50
    assert not [x.message.hex() for x in near()[difference.id] if difference.where(x)]


@cache
def usual() -> list[Situation]:
    around = Surroundings(questions.TABLE, proxies.SCOPE, servers=2)
    clashing = Surroundings(questions.CLASHES, proxies.SCOPE, servers=2)
    asked = [*questions.messages(), *questions.upstream_replies()]
    names = ["spelt.clash.test", "cart.shop", f"hides.{questions.SEARCH}"]
    return [
        *(situation(one, around) for one in asked),
        *(situation(Asked("", questions.query(name)), clashing) for name in names),
    ]


@pytest.mark.parametrize("difference", differences.DIFFERENCES, ids=IDS)
def test_a_difference_holds_somewhere(difference: Difference) -> None:
    if difference.id in ELSEWHERE:
        unknown = questions.query("known-x.upstream.test")
        made = [
            Surroundings({}, proxies.SCOPE, servers=0, parallel=True),
            Surroundings({}, proxies.SCOPE, told=False, port=53),
            Surroundings({}, proxies.SCOPE, under_way=differences.PENDING + 1),
        ]
        assert [difference.where(Situation(unknown, False, around)) for around in made].count(True) == 1
        return
    assert any(difference.where(x) for x in usual())


def test_what_is_taken_away_is_no_more_than_is_said() -> None:
    """RA alone is forgiven, and where both make the answer."""
    (flag_ra,) = [difference for difference in differences.DIFFERENCES if difference.id == "flag-ra"]
    around = Surroundings(questions.TABLE, proxies.SCOPE, servers=2)
    x = situation(Asked("", questions.query("api.partner.test")), around)
    agent, ours = Seen(0, wire.QR | wire.AA), Seen(0, wire.QR | wire.AA | wire.RA)
    assert flag_ra.where(x)
    assert len(set(flag_ra.level(x, agent, ours))) == 1
    assert len(set(flag_ra.level(x, agent, Seen(0, ours.flags, b"other")))) == 2
