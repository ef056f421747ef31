"""Programs in the kernel that turn connections where they are made, before there is a packet."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

from ..ebpf.settings import from_options
from ..options import Options
from .mechanism import Mechanism


class Ebpf(Mechanism):
    """See the module."""

    programs: ClassVar[bool] = True

    def files(self, options: Options) -> dict[str, str]:
        """What the programs cannot honour is refused here, not in the loader's container."""
        from_options(options)
        return {"options.json": json.dumps(dataclasses.asdict(options), indent=1) + "\n"}

    def load(self, files: dict[str, str]) -> list[str]:
        """A loader that is refused says so itself; the rest of the testbed comes up."""
        return ["python3 -m interception.ebpf --wait 10 || true"]


MECHANISM = Ebpf()
