"""Where in the cgroup tree the programs are attached."""

from __future__ import annotations

import os
from pathlib import Path

from .libbpf import Refused


def pod_parent(tree: Path) -> Path:
    """The cgroup above this process's own: the engine's, or the one Compose's `cgroup_parent` names.

    A container's own cgroup goes when it stops and takes its attachments along; the one above outlives restarts. It is
    found by this process's number in `cgroup.procs`, which holds for the hybrid layout (cgroup 2 beside version 1), for
    private cgroup namespaces, where /proc/self/cgroup says only `/`, and for either driver. Raises Refused.
    """
    if not (tree / "cgroup.controllers").exists():
        raise Refused(f"there is no cgroup 2 tree at {tree}; mount the host's there (read-only is enough)")
    own = _holding(tree, os.getpid())
    if own is None or own == tree:
        raise Refused(f"the loader's own cgroup is not in {tree}; mount the host's tree, not the container's")
    return own.parent


def _holding(tree: Path, pid: int) -> Path | None:
    """The cgroup in which a process is; numbers are those of our own pid namespace, 0 for strangers."""
    for folder, names, _ in os.walk(tree):
        names.sort()
        try:
            held = (Path(folder) / "cgroup.procs").read_text()
        except OSError:  # a threaded cgroup, or one that went meanwhile
            continue
        if str(pid) in held.split():
            return Path(folder)
    return None
