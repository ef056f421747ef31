"""The verb `rules`: prints what would be loaded or removed, or does it in the current network namespace."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import faults, iptables, kernel, nftables, ruleset
from .conventions import ALL, ISTIO
from .ebpf import settings
from .options import Family, Options, from_json
from .refusal import Refusal
from .ruleset import RuleSet

DESCRIPTION = (
    "print the interception rules of Istio, or of another mesh, for the options in a JSON file, as iptables-restore "
    "--noflush or nft -f reads them; or load them into the current network namespace; for eBPF print what its programs "
    "are told"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument("--mechanism", choices=("iptables", "nftables", "ebpf"), required=True)
    parser.add_argument("--config", metavar="FILE", help="options as JSON over the mesh's own; - reads standard input")
    parser.add_argument("--conventions", choices=tuple(ALL), help="whose ports, users and chains (default: istio)")
    parser.add_argument("--family", choices=ruleset.FAMILIES, help="default: ipv4; nftables: all that are enabled")
    parser.add_argument("--remove", action="store_true", help="what removes the rules, instead of what loads them")
    parser.add_argument("--apply", action="store_true", help="do it here and now (NET_ADMIN) instead of printing it")
    parser.add_argument("--replace", action="store_true", help="with --apply: even if other rules have our names")
    parser.add_argument("--first", action="store_true", help="before all other rules of nat OUTPUT, not after them")
    parser.add_argument("--named", action="store_true", help="comments by which counters are found")
    parser.add_argument("--faults", action=_Faults, nargs=0, help="print the faults of Istio's rules, and end")
    parser.add_argument("--outbound-tproxy", action="store_true", help="outbound TCP by TPROXY too (not in Istio)")


class _Faults(argparse.Action):
    """The whole list, in place of rules."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print("\n".join(map(str, faults.FAULTS)))
        parser.exit()


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask; the exit code: 0, 2 bad input, 3 the machine lacks something."""
    try:
        return _run(arguments)
    except Refusal as refusal:
        print(f"meshdns: {refusal}", file=sys.stderr)
        return refusal.exit_code


def _run(arguments: argparse.Namespace) -> int:
    mesh = arguments.conventions
    options = Options.of(mesh or ISTIO.name) if arguments.config is None else read(arguments.config, mesh)
    for warning in options.warnings:
        print(f"meshdns: warning: {warning}", file=sys.stderr)
    for fault in faults.brought_about(options):
        print(f"meshdns: warning: Istio's fault, followed: {fault}", file=sys.stderr)
    if arguments.mechanism == "ebpf":
        print(_programs(options, arguments))
        return 0
    families = _families(arguments, options)
    if arguments.family == "ipv6" and not options.enable_ipv6:
        print("meshdns: warning: enable_ipv6 is false: IPv6 is left alone, there are no rules", file=sys.stderr)
    rules = ruleset.build(options, *families, outbound_tproxy=arguments.outbound_tproxy)
    if arguments.apply:
        loader = kernel.Loader(arguments.mechanism, first=arguments.first, named=arguments.named)
        act = loader.remove if arguments.remove else loader.apply
        print(f"meshdns: {act(rules, replace=arguments.replace)}", file=sys.stderr)
    else:
        print(text(rules, arguments), end="")
    return 0


def _programs(options: Options, arguments: argparse.Namespace) -> str:
    """What the loader of the eBPF programs tells them. Raises Refusal for what only rules have."""
    for key in ("apply", "remove", "replace", "first", "named", "outbound_tproxy"):
        if getattr(arguments, key):
            step = "run `python3 -m interception.ebpf --config FILE` in the pod: the programs last as long as it does"
            raise Refusal(f"--{key.replace('_', '-')} is for rules, not for eBPF; {step}")
    if arguments.family == "ipv6":
        raise Refusal("--family ipv6 is not possible by eBPF: IPv6 is let alone; use iptables or nftables")
    return json.dumps(settings.from_options(options).document(), indent=1)


def _families(arguments: argparse.Namespace, options: Options) -> tuple[Family, ...]:
    if arguments.family:
        return (arguments.family,)
    # iptables-restore reads one family; what is applied, and what nft reads, can be both.
    both = options.enable_ipv6 and (arguments.apply or arguments.mechanism == "nftables")
    return ruleset.FAMILIES if both else ("ipv4",)


def text(rules: RuleSet, arguments: argparse.Namespace) -> str:
    """What is printed."""
    named, first = arguments.named, arguments.first
    if arguments.mechanism == "nftables":
        return nftables.render_removal(rules) if arguments.remove else nftables.render(rules, first=first, named=named)
    if arguments.remove:
        return iptables.render_removal(rules, named=named)
    return iptables.render(rules, first=first, named=named)


def read(name: str, mesh: str | None = None) -> Options:
    """The options in a file, or on standard input for "-". Raises Refusal."""
    place = "standard input" if name == "-" else name or "--config"
    try:
        content = _standard_input() if name == "-" else Path(name).read_bytes()
        return from_json(json.loads(content, object_pairs_hook=_once), place, mesh)
    except OSError as problem:
        raise Refusal(f"{place}: {problem.strerror}; give a file that can be read") from problem
    except (ValueError, RecursionError) as problem:
        reason = "nested too deeply" if isinstance(problem, RecursionError) else " ".join(str(problem).split())
        raise Refusal(f"{place}: not JSON ({reason}); give one object of keys and values") from problem


def _standard_input() -> bytes:
    """What is there. Raises OSError; Python has no `sys.stdin` where it was started without."""
    with os.fdopen(0, "rb", closefd=False) as stream:
        return stream.read()


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are all different; of two equal keys JSON readers silently take one."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key} stands twice")
        found[key] = value
    return found
