"""The command line: one clear message, a documented exit code, never a traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli, errors, plan

ROOT = Path(__file__).parents[1]


def meshdns(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=120, check=False,
    )  # fmt: skip


def test_help_fits_a_screen_and_names_every_exit_code() -> None:
    said = meshdns("--help").stdout
    assert len(said.splitlines()) <= 32
    assert ", ".join(plan.shipped()) == cli.PLANS
    codes = {kind.exit_code for kind in errors.MeshdnsError.__subclasses__()} | {cli.INTERRUPTED}
    assert all(f"{code} " in said for code in codes)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "--plan", "nonsense"], 2, "nonsense: no such plan"),
        (["run", "--resume", "data/runs/nowhere.partial"], 5, "nowhere.partial"),
        (["report", "--runs", "data/nowhere"], 5, "nowhere"),
        (["report", "-p", "percentil", "9"], 2, "percentil"),
        (["exec", "dns-bind"], 2, "no command is given"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], code: int, said: str) -> None:
    done = meshdns(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", ["up", "status", "down", "run", "logs"])
def test_without_an_engine_every_verb_says_so_and_what_to_do(verb: str, tmp_path: Path) -> None:
    done = meshdns(verb, DOCKER_HOST=f"unix://{tmp_path}/no-engine.sock", PATH=os.environ["PATH"])
    assert done.returncode == errors.EnvironmentProblem.exit_code, done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_prints_cells_and_duration_and_starts_nothing() -> None:
    done = meshdns("run", "--dry-run", DOCKER_HOST="unix:///nowhere.sock")
    assert done.returncode == 0
    assert "mode2-envoy" in done.stdout
    assert "minutes in all" in done.stdout.splitlines()[-1]


def test_networks_outside_the_benchmarking_range_are_refused() -> None:
    done = meshdns("up", MESHDNS_PODS="10.1.2")
    assert done.returncode == 2
    assert "outside 198.18.0.0/15" in done.stderr


def test_a_full_disk_is_one_message_with_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/block")

    monkeypatch.setattr(cli, "_down", full)
    assert cli.main(["down"]) == errors.StorageError.exit_code
    assert capsys.readouterr().err.startswith("meshdns: /somewhere/block: No space left on device; free some space")
