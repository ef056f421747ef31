"""What the cluster DNS answers, as a pod without a mesh is told it, and by which way its questions go."""

from __future__ import annotations

import json
import time

import pytest
from test_paths import measured_as_in_a_run, trial, wrong

from meshdns.core.world import Nets
from meshdns.istio import reader, records, verbs
from meshdns.lab import observers, parts
from meshdns.lab.compose.testbed import Testbed
from meshdns.lab.parts import dnsdist
from meshdns.measure.session import Session
from shipped import WORLD

# Questions by standard input, [name, type] in JSON; answers by standard output, in the same order.
ASK = """
import json, sys, dns.flags, dns.message, dns.query, dns.rcode, dns.rdatatype
told = []
for name, rtype in json.load(sys.stdin):
    asked = dns.message.make_query(name, rtype, use_edns=False)
    reply = dns.query.udp(asked, sys.argv[1], timeout=3)
    data = sorted(one.to_text() for rrset in reply.answer for one in rrset)
    soa = [rrset.ttl for rrset in reply.authority if rrset.rdtype == dns.rdatatype.SOA]
    own = bool(reply.flags & dns.flags.AA)
    told.append([dns.rcode.to_text(reply.rcode()), data, [rrset.ttl for rrset in reply.answer], soa, own])
print(json.dumps(told))
"""


def asked(bed: Testbed, *questions: tuple[str, str]) -> list[tuple[str, list[str], list[int], list[int], bool]]:
    """Response code, data, TTLs, the TTL of the zone's SOA where there is no data, whether it is authoritative."""
    program = ["python3", "-c", ASK, WORLD.dns_cluster_ip]
    said = bed.exec("client-plain", program, timeout_s=60, given=json.dumps(questions), image="dnsproxy")
    return [tuple(each) for each in json.loads(said)]


def here(bed: Testbed, text: str) -> str:
    """With the addresses of this testbed."""
    for separator in ".-":
        text = text.replace(Nets().pods.replace(".", separator), bed.nets.pods.replace(".", separator))
    return text


def unweighted(data: str) -> str:
    """Of SRV data: the weight is the server's own."""
    return " ".join(word for n, word in enumerate(data.split(" ")) if n != 1)


def test_every_record_of_the_specification_is_answered(bed: Testbed) -> None:
    """As the model of `explain` has them, which is not what the zones are rendered from."""
    text = "".join(f"---\n{json.dumps(each.document)}\n" for each in bed.world.manifests)
    mesh = verbs.build(reader.parse({"world.yaml": text}))
    wanted: dict[tuple[str, str], list[str]] = {}
    for one in records.build(mesh):
        wanted.setdefault((here(bed, one.name), one.rtype), []).append(here(bed, one.data))
    for ((name, rtype), data), found in zip(wanted.items(), asked(bed, *wanted), strict=True):
        code, told, ttls, _, own = found
        assert set(ttls) == {30}, name
        known = unweighted if rtype == "SRV" else str
        assert (code, sorted(map(known, told)), own) == ("NOERROR", sorted(map(known, data)), True), name


@pytest.mark.parametrize(
    ("name", "rtype", "code", "data"),
    [
        ("dns-version.cluster.local.", "TXT", "NOERROR", ['"1.1.0"']),
        ("{web}.in-addr.arpa.", "PTR", "NOERROR",
         [f"{{dashed}}.{name}.shop.svc.cluster.local." for name in ("web", "web-headless")]),
        ("10.1.96.10.in-addr.arpa.", "PTR", "NOERROR", ["web.shop.svc.cluster.local."]),
        ("{dashed}.shop.pod.cluster.local.", "A", "NOERROR", ["{address}"]),
        ("{dashed}.web.shop.svc.cluster.local.", "A", "NOERROR", ["{address}"]),
        ("answer-loopback-answers.shop.svc.cluster.local.", "A", "NOERROR", ["127.0.0.1"]),
        ("web.shop.svc.cluster.local.", "AAAA", "NOERROR", []),
        ("shop.svc.cluster.local.", "A", "NOERROR", []),  # a namespace
        ("absent.shop.svc.cluster.local.", "A", "NXDOMAIN", []),
        ("web.shop.svc.cluster.local.shop.svc.cluster.local.", "A", "NXDOMAIN", []),
        ("absent.shop-headless.shop.svc.cluster.local.", "A", "NXDOMAIN", []),
        ("www.example.com.", "A", "NOERROR", ["{outside}"]),
        ("absent.example.com.", "A", "NXDOMAIN", []),
        ("example.org.", "A", "NXDOMAIN", []),
        ("1.2.0.192.in-addr.arpa.", "PTR", "NXDOMAIN", []),
    ],
)  # fmt: skip
def test_other_names_are_answered_as_by_a_clusters_own(
    bed: Testbed, name: str, rtype: str, code: str, data: list[str]
) -> None:
    address = bed.address("web-1")
    words = {"address": address, "dashed": address.replace(".", "-"), "outside": bed.address("world-web"),
             "web": ".".join(reversed(address.split(".")))}  # fmt: skip
    [(said, told, _, soa, _)] = asked(bed, (name.format(**words), rtype))
    assert (said, told) == (code, sorted(each.format(**words) for each in data))
    assert len(soa) == (not data)  # who asks may keep it that nothing is there
    assert set(soa) <= {30}


def delayed(bed: Testbed) -> int:
    """Queries that came to dnsdist."""
    [at] = [at for at in parts.there(bed)["dns"] if at.part is dnsdist.PART]
    with observers.opened(bed) as asking:
        page = json.loads(observers.page(asking["observer"], dnsdist.PART.ready(at)) or "{}")
    return sum(rule["matches"] for rule in page["rules"] if rule["name"] == "delay")


@pytest.mark.parametrize("arm", ["plain", "mode1", "mode2-agent", "ebpf"])
def test_dnsdist_is_asked_where_a_delay_is_wanted_and_not_otherwise(session: Session, bed: Testbed, arm: str) -> None:
    came = []
    for delay_ms in (0.0, 5.0, 0.0, 0.0):  # until it is taken back, a sidecar's own questions go there as well
        before = delayed(bed)
        measured = session.trial(0, trial(arm, name_kind="absent", dns_delay_ms=delay_ms), seed=1)
        assert wrong(measured) == [], measured.record.counters
        counted = measured.record.counters
        assert counted["pod/rule/dns_client"] == 23 * 4 <= counted["dnsdist/from_pod"]
        assert counted["coredns/queries"] >= counted["dnsdist/from_pod"]
        came.append(delayed(bed) - before)
    assert came[1] >= 23 * 4
    assert came[::3] == [0, 0]


@pytest.mark.parametrize("arm", ["plain-cache", "plain-nocache", "plain-nodelocal"])
@pytest.mark.parametrize("name_kind", ["fqdn", "short", "external", "absent"])
def test_what_keeps_answers_otherwise_is_counted_as_exactly(session: Session, arm: str, name_kind: str) -> None:
    for factors in ({"qtype": "A"}, {"lookup": "getaddrinfo", "qtype": "A+AAAA"}):
        measured = measured_as_in_a_run(session, trial(arm, name_kind=name_kind, **factors))
        assert wrong(measured) == [], (factors, measured.record.counters)
        if arm == "plain-nodelocal":  # all but the first of each is answered by the node
            assert measured.record.counters.get("dnsdist/from_pod", 0) <= 8


def test_a_cluster_dns_keeps_answers_as_its_corefile_says(bed: Testbed) -> None:
    """By the TTL, which falls with the time for which an answer was kept."""
    keeping = {"web.shop.svc.cluster.local.": ["plain-cache"], "www.example.com.": ["plain", "plain-cache"]}
    for name, kept in keeping.items():
        for arm in ("plain", "plain-cache", "plain-nocache"):
            client, question = WORLD.arms[arm], json.dumps([[name, "A"]])
            ttls = []
            for _ in range(3):
                program = ["python3", "-c", ASK, WORLD.dns_address(client)]
                said = bed.exec(client.pod, program, timeout_s=60, given=question, image="dnsproxy")
                ttls.append(json.loads(said)[0][2][0])
                time.sleep(1.5)
            assert (min(ttls) < 30) == (arm in kept), (arm, name, ttls)
