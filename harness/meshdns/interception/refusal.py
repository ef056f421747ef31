"""What the package refuses, in one line: the place, the fact, the next step."""

from __future__ import annotations


class Refusal(Exception):
    """Options that cannot be, or a namespace that holds what is not ours."""

    exit_code = 2


class Unavailable(Refusal):
    """The machine lacks a tool, a permission or a kernel feature, or the kernel said no; nothing was changed."""

    exit_code = 3
