"""How connections are captured in a pod, each way a module of this folder: `ALL`, by the module's name."""

from __future__ import annotations

import importlib
import pkgutil

from .mechanism import COUNTED, RULES, Command, Mechanism

__all__ = ["ALL", "COUNTED", "RULES", "Command"]

ALL: dict[str, Mechanism] = {
    found.name: importlib.import_module(f"{__name__}.{found.name}").MECHANISM
    for found in pkgutil.iter_modules(__path__)
    if found.name != "mechanism"
}
