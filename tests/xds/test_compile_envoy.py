"""What the compiler makes of any mesh is configuration that Envoy takes: asked of the Envoy of the image."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from envoydriver import binary
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_compile import CLIENT, PUBLISHED, build, nodes, standing

import generators
from meshdns.istio import expressions
from meshdns.xds import authority
from meshdns.xds.api import Json
from meshdns.xds.authority import Certificates
from meshdns.xds.compile import Compiler, snapshot
from meshdns.xds.node import Node

pytestmark = pytest.mark.testbed


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return binary(tmp_path_factory.mktemp("envoy"))


@pytest.fixture(scope="module")
def secrets() -> list[Json]:
    return issued("default")


def issued(account: str) -> list[Json]:
    """A certificate of a new authority for one account, as the secrets that sidecars ask for."""
    certificates = Certificates(authority.make(time.time()))
    identity = f"spiffe://cluster.local/ns/shop/sa/{account}"
    return list(certificates.secrets(certificates.of("shop/web-1", identity, time.time())).values())


def refusal(envoy: Path, config: Json) -> str:
    """What Envoy has against a configuration; empty if nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        command = [str(envoy), "--mode", "validate", "--concurrency", "1", "-l", "error", "-c", file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr[-2000:]}"


@settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate)
)
@given(mesh=generators.meshes(max_services=5, max_entries=5), node=nodes())
def test_envoy_takes_what_any_mesh_becomes(
    envoy: Path, secrets: list[Json], mesh: list[generators.Document], node: Node
) -> None:
    found = refusal(envoy, standing(node, Compiler(build(*mesh)).snapshot(node), secrets))
    assert not found, found


_PIECES = (
    *("a", "b", ".", "^", "$", "|", "[", "]", "[^", "{", "}", "-", "é", "(", ")", "*", "+", "?"),
    *(r"\d", r"\W", r"\b", r"\B", r"\A", r"\Z", r"\z", r"\x41", r"\101", r"\1", r"\0", r"\-", r"\_", r"\n", "\\\\"),
    *("(?:", "(?i)", "(?s:", "(?P<n>", "(?=", "(?<a>", "{2}", "{2,}", "{,3}", "{200}", "{1001}"),
    *("[a-z]", r"[\d_]", r"[^\w]", "[[:alpha:]]"),
)
_EXPRESSIONS = st.lists(
    st.lists(
        st.sampled_from(_PIECES),
        max_size=7,
    ).map("".join),
    min_size=30,
    max_size=60,
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate)
)
@given(texts=_EXPRESSIONS)
def test_envoy_takes_what_is_taken_for_a_regular_expression(envoy: Path, secrets: list[Json], texts: list[str]) -> None:
    taken = [one for one in texts if not expressions.refusal(one)]
    matches = [{"uri": {"regex": one}} for one in (*taken, "x")]
    route = {"match": matches, "route": [{"destination": {"host": "web", "port": {"number": 80}}}]}
    more = generators.document(
        "VirtualService", generators.ISTIO[0], "shop", "v", spec={"hosts": ["web"], "http": [route]}
    )
    found = refusal(envoy, standing(CLIENT, snapshot(build(*PUBLISHED, more), CLIENT), secrets))
    assert not found, found


@pytest.mark.parametrize(
    ("part", "said"), [("address", "duplicated addresses"), ("filter_chains", "same matching rules")]
)
def test_envoy_would_say_no(envoy: Path, secrets: list[Json], part: str, said: str) -> None:
    """Two listeners of one address, of which one is not even bound; two chains that match alike."""
    config = standing(CLIENT, snapshot(build(*PUBLISHED), CLIENT), secrets)
    assert not refusal(envoy, config)
    found = {one["name"]: one for one in config["static_resources"]["listeners"]}
    unbound, bound = found["10.96.1.10_5432"], found["virtual_outbound"]
    unbound[part] = bound[part] if part == "address" else 2 * unbound[part]
    assert said in refusal(envoy, config)
