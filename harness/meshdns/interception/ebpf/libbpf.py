"""The part of libbpf that the loader uses, by ctypes: open, configure, load, attach, read a map.

Every attachment is a link that lives as long as this process: however it ends, the kernel detaches everything.
Reference: libbpf 1.x (bpf/libbpf.h, bpf/bpf.h), of which Debian's libbpf1 is one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_LIBRARY = "libbpf.so.1"
_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_file": (_POINTER, (ctypes.c_char_p, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__find_map_by_name": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "bpf_object__find_program_by_name": (_POINTER, (_POINTER, ctypes.c_char_p)),
    "bpf_map__set_initial_value": (_INT, (_POINTER, _POINTER, _SIZE)),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map_lookup_elem": (_INT, (_INT, _POINTER, _POINTER)),
    "bpf_map_update_elem": (_INT, (_INT, _POINTER, _POINTER, ctypes.c_uint64)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_program__attach_cgroup": (_POINTER, (_POINTER, _INT)),
    "bpf_program__attach_netns": (_POINTER, (_POINTER, _INT)),
    "bpf_prog_test_run_opts": (_INT, (_INT, _POINTER)),
    "libbpf_num_possible_cpus": (_INT, ()),
}
_PROGRAM = re.compile(r"prog '(\w+)': BPF program load failed")
_FRAME = bytes(14 + 20)  # an empty Ethernet frame: the least that a test run of a tc program takes


class Refused(Exception):
    """The kernel or the engine does not allow interception; the text is one line that says why."""


class _TestRun(ctypes.Structure):
    """`struct bpf_test_run_opts`."""

    _fields_ = [
        ("sz", _SIZE),
        ("data_in", _POINTER),
        ("data_out", _POINTER),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", _POINTER),
        ("ctx_out", _POINTER),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", _INT),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError as error:
        raise Refused(f"{_LIBRARY} is missing ({error}); install libbpf1") from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Programs:
    """The programs of one object file, loaded into the kernel with their settings."""

    def __init__(self, path: Path, settings: bytes) -> None:
        """Raises Refused."""
        self._lib = _library()
        self._object = self._open(path)
        section = self._lib.bpf_object__find_map_by_name(self._object, b".rodata.settings")
        if not section or self._lib.bpf_map__set_initial_value(section, settings, len(settings)):
            raise Refused(f"{path} is of another version than the loader; build it again")
        with _said() as said:
            code = self._lib.bpf_object__load(self._object)
        if code:
            raise Refused(load_refusal(-code, said))

    def _open(self, path: Path) -> int:
        with _said() as said:
            opened = self._lib.bpf_object__open_file(os.fsencode(path), None)
        if not opened:
            reason = said[-1] if said else os.strerror(ctypes.get_errno())
            raise Refused(f"{path} is no object file of eBPF programs ({reason}); build it again")
        return int(opened)

    def _program(self, name: str) -> int:
        return int(self._lib.bpf_object__find_program_by_name(self._object, name.encode()))

    def attach(self, names: Sequence[str], place: Path, *, namespace: bool = False) -> None:
        """The programs run for a cgroup and all below it, or for a network namespace. Raises Refused."""
        attach = self._lib.bpf_program__attach_netns if namespace else self._lib.bpf_program__attach_cgroup
        target = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for name in names:
                with _said():
                    link = attach(self._program(name), target)
                if not link:
                    reason = os.strerror(ctypes.get_errno())
                    raise Refused(
                        f"the kernel does not attach {name} to {place} ({reason}); Linux 5.15 or newer has all"
                    )
        finally:
            os.close(target)

    def run(self, name: str) -> int:
        """What a tc program returns for an empty frame in this process's network namespace. Raises Refused."""
        options = _TestRun(sz=ctypes.sizeof(_TestRun), data_size_in=len(_FRAME), repeat=1)
        options.data_in = ctypes.cast(ctypes.c_char_p(_FRAME), _POINTER)
        if code := self._lib.bpf_prog_test_run_opts(
            self._lib.bpf_program__fd(self._program(name)), ctypes.byref(options)
        ):
            raise Refused(f"the kernel does not run {name} ({os.strerror(-code)})")
        return int(options.retval)

    def fill(self, name: str, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Keys and values are in a map. Raises Refused."""
        descriptor = self._map(name)
        for key, value in entries:
            if code := self._lib.bpf_map_update_elem(descriptor, key, value, 0):
                raise Refused(f"the kernel does not take an entry of {name} ({os.strerror(-code)})")

    def _map(self, name: str) -> int:
        return int(self._lib.bpf_map__fd(self._lib.bpf_object__find_map_by_name(self._object, name.encode())))

    def per_cpu(self, name: str, entries: int) -> list[bytes]:
        """The values of a per-CPU array of 64-bit numbers."""
        descriptor = self._map(name)
        value = ctypes.create_string_buffer(8 * self._lib.libbpf_num_possible_cpus())
        values = []
        for index in range(entries):
            key = ctypes.c_uint32(index)
            if code := self._lib.bpf_map_lookup_elem(descriptor, ctypes.byref(key), value):
                raise OSError(-code, os.strerror(-code))
            values.append(value.raw)
        return values


def load_refusal(code: int, said: Sequence[str]) -> str:
    """Why the kernel does not load the programs, in one line; `said` is what libbpf printed."""
    if code == errno.EPERM:
        return "the kernel refuses bpf(): the loader needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN"
    if code == errno.ENOSYS:
        return "the kernel has no bpf() system call; it needs CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
    # The verifier's last word stands before libbpf's summary of it.
    words = [line for line in said if not line.startswith(("libbpf:", "processed ", "-- "))]
    detail = f": {words[-1]}" if words else ""
    named = next((found[1] for line in said if (found := _PROGRAM.search(line))), "the programs")
    return f"the kernel refuses {named} ({os.strerror(code)}{detail}); Linux 5.15 or newer takes it"


@contextlib.contextmanager
def _said() -> Iterator[list[str]]:
    """Collects the lines that libbpf prints on standard error meanwhile."""
    lines: list[str] = []
    before = os.dup(2)
    with os.fdopen(os.memfd_create("said"), "w+b") as caught:  # a container may have no writable folder
        os.dup2(caught.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(before, 2)
            os.close(before)
            caught.seek(0)
            lines += [line.strip() for line in caught.read().decode(errors="replace").splitlines() if line.strip()]
