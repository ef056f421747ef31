"""CPU time and memory of containers, read from the cgroup files that the kernel has for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshdns.core import errors
from meshdns.lab.place import Usage

CGROUPS = Path("/sys/fs/cgroup")  # where every distribution mounts them, v1 or v2


@dataclass(frozen=True)
class Group:
    """Files of one container's cgroup; v1 and v2 spell them differently."""

    cpu: Path
    memory: Path | None
    version: int

    def read(self) -> Usage:
        """What its processes have used. Raises TestbedError."""
        try:
            memory = int(self.memory.read_text()) if self.memory else None
            if self.version == 1:
                return Usage(int(self.cpu.read_text()) / 1000, memory)  # cpuacct.usage: nanoseconds
            fields = dict(line.split() for line in self.cpu.read_text().splitlines())
            return Usage(float(fields["usage_usec"]), memory)
        except OSError as error:
            raise errors.TestbedError(f"its cgroup is gone ({error.strerror})", place=str(self.cpu.parent)) from None


def of_process(pid: int) -> Group:
    """The cgroup of a process."""
    try:
        listing = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        raise errors.TestbedError(
            "the containers' processes are not visible here", place="/proc", step="run meshdns on the engine's machine"
        ) from None
    return group(listing, CGROUPS)


def group(listing: str, root: Path) -> Group:
    """The files under `root` of the cgroups in `listing`, the kernel's own list for a process (cgroups(7))."""
    lines = (line.split(":", 2) for line in listing.splitlines())
    paths = {name: path.lstrip("/") for _, names, path in lines for name in names.split(",")}
    if (root / "cgroup.controllers").exists():  # v2 is mounted; v1 hierarchies may be listed and mounted nowhere
        cpu, memory, version = root / paths[""] / "cpu.stat", root / paths[""] / "memory.current", 2
    else:
        cpu = root / "cpuacct" / paths.get("cpuacct", "") / "cpuacct.usage"
        memory, version = root / "memory" / paths.get("memory", "") / "memory.usage_in_bytes", 1
    return Group(cpu, memory if memory.exists() else None, version)
