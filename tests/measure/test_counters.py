"""What components count goes by one name."""

from __future__ import annotations

import json
import re
import urllib.parse

from meshdns.measure import counters
from meshdns.measure.cell import Cell
from shipped import WORLD


def test_envoys_dns_filter_is_counted_whoever_configures_it() -> None:
    known = [f"dns_filter.mesh.{name}" for name in ("downstream_rx_queries", "external_a_record_queries")]
    known += ["dns_filter.mesh.external_aaaa_record_queries"]
    for arm in ("mode2-envoy", "mode2-envoy-xds"):
        page = counters._local_pages(Cell("lookup", arm), WORLD.arms[arm])["envoy"]["url"]
        wanted = urllib.parse.unquote(page.rpartition("&filter=")[2])
        told = [{"name": name, "value": n} for n, name in enumerate(known, 4) if re.search(wanted, name)]
        found = counters._envoy(json.dumps({"stats": told}))
        assert found == {"dnsproxy/queries": 4, "dnsproxy/forwarded": 5 + 6}, arm
