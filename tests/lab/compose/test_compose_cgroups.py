"""CPU time and memory are read from the cgroup files that are mounted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from meshdns.core import errors
from meshdns.lab.compose import cgroups
from meshdns.lab.place import Usage

BOTH = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/docker/two\n"  # v1 hierarchies, and v2 beside them


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def version_1(root: Path) -> None:
    write(root / "cpuacct/docker/abc/cpuacct.usage", "1500000\n")  # nanoseconds
    write(root / "memory/docker/abc/memory.usage_in_bytes", "4096\n")


def version_2(root: Path) -> None:
    write(root / "cgroup.controllers", "cpuset cpu memory\n")
    write(root / "docker/two/cpu.stat", "usage_usec 2500\nuser_usec 2000\nsystem_usec 500\n")
    write(root / "docker/two/memory.current", "8192\n")


def test_version_1(tmp_path: Path) -> None:
    version_1(tmp_path)
    assert cgroups.group(BOTH, tmp_path).read() == Usage(1500.0, 4096)


def test_version_2_though_the_kernel_lists_version_1_too(tmp_path: Path) -> None:
    version_2(tmp_path)
    assert cgroups.group(BOTH, tmp_path).read() == Usage(2500.0, 8192)


def test_memory_that_the_kernel_does_not_count_is_left_out(tmp_path: Path) -> None:
    version_2(tmp_path)
    (tmp_path / "docker/two/memory.current").unlink()
    assert cgroups.group(BOTH, tmp_path).read() == Usage(2500.0, None)


def test_a_container_that_is_gone_is_told(tmp_path: Path) -> None:
    version_2(tmp_path)
    group = cgroups.group(BOTH, tmp_path)
    shutil.rmtree(tmp_path / "docker")
    with pytest.raises(errors.TestbedError, match="its cgroup is gone"):
        group.read()
