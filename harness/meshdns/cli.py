"""The command line: verbs in the order of work. The only place that prints, and the only one that ends the process."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from meshdns.core import errors, extras, paths, plans

if TYPE_CHECKING:
    from meshdns.core.world import Nets, World
    from meshdns.lab.compose.testbed import Testbed
    from meshdns.measure.plan import Plan

# Verbs import what they need when they run: `meshdns --help` does not wait for pandas.
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

DESCRIPTION = """\
Measures on this machine how service-mesh sidecars and DNS work together.

exit codes: 0 done; 2 bad input; 3 the machine lacks something; 4 the testbed failed;
5 damaged data; 6 the report failed; 7 disk full or not writable; 8 a part of the testbed was lost;
130 interrupted"""


def say(line: str) -> None:
    """A line for the person, on standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.name is None:
        parser.print_help(sys.stderr)
        return errors.InputError.exit_code
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks for
            signal.signal(number, _terminate)
    try:
        with extras.needed_by(options.name):
            return int(options.verb(options) or 0)
    except errors.MeshdnsError as error:
        say(f"meshdns: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("meshdns: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not errors.is_storage(error):
            raise
        say(f"meshdns: {errors.storage(error)}")
        return errors.StorageError.exit_code


def _terminate(number: int, frame: FrameType | None) -> None:
    """TERM, and the terminal's end, are handled as Ctrl-C is: what is complete is stored, the testbed goes down."""
    raise KeyboardInterrupt


class _Version(argparse.Action):
    """Like --help: prints and exits. It asks git, so it is worked out only when wanted."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import platform

        from meshdns import __version__
        from meshdns.lab import recording

        commit, istio = paths.commit(), recording.read().istio
        own = f"meshdns {__version__}{f' (commit {commit})' if commit else ''}"
        print(f"{own}, Istio {istio} (development, not a release), Python {platform.python_version()}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshdns", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print version, commit, Istio and Python, and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="name")

    def verb(name: str, action: object, text: str, *shared: argparse.ArgumentParser) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, parents=shared)
        sub.set_defaults(verb=action)
        return sub

    # What several verbs take.
    world, live, force = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    world.add_argument("--world", type=Path, action="append", default=[], metavar="FILE",
                       help="manifests of the pods and Services, a file or a folder, also several times (default: "
                       "compose/worlds)")  # fmt: skip
    live.add_argument("--live", action="store_true",
                      help="with Istio's own control plane, also where what it says was recorded")  # fmt: skip
    force.add_argument("--force", action="store_true", help="also while somebody uses the testbed or measures here")

    verb("doctor", _doctor, "what is there, what is missing, and the command that mends it")
    one = verb("engine", _engine, "find or install the container engine, build the images of every testbed")
    one.add_argument("--browser", action="store_true", help="chromium and its driver instead (for the tests)")
    verb("up", _up, "start the testbed and wait until it answers", world, live, force)
    verb("status", _status, "a table of the testbed's containers")
    one = verb("logs", _logs, "a container's log")
    one.add_argument("service", nargs="?", help="as in `meshdns status`; all if left out")
    one = verb("exec", _exec, "run a command in a container", force)
    one.add_argument("service")
    one.add_argument("command", nargs=argparse.REMAINDER)
    verb("down", _down, "remove the testbed", force)
    one = verb("run", _run, "measure a plan; prints the run's folder", world, live, force)
    _plan_options(one)
    one.add_argument("--dry-run", action="store_true", help="print the time it will take and the first block")
    one = verb("trace", _trace, "one request: what every hop saw of it", world, live, force)
    one.add_argument("url", help="http://HOST[:PORT]/PATH or https://…, as an application in the pod would ask")
    one.add_argument("--arm", default="mode1", help="the client pod that asks (default: mode1)")
    one.add_argument("--json", action="store_true", help="the whole observation instead of a table")
    _standalone(verb)
    one = verb("record", _record, "what Istio's own control plane tells sidecars", force, world)
    one.add_argument("--out", type=Path, metavar="FOLDER", help="for the answers (default: compose/recorded)")
    words = "measure a plan, or take stored runs, and publish the notebooks as HTML"
    one = verb("report", _report, words, world, live, force)
    what = _plan_options(one)
    stored = "publish these stored runs (e.g. data/sample) instead of measuring (no engine needed)"
    what.add_argument("--runs", type=paths.locate, metavar="FOLDER", help=stored)
    one.add_argument("--out", type=Path, default=paths.REPORTS, help="folder for reports (default: reports/)")
    one.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                     help="a notebook parameter, as papermill takes it")  # fmt: skip
    return parser


def _standalone(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Verbs that need no testbed; each brings its own arguments."""
    import meshdns.dnsproxy.options as dns_proxy
    import meshdns.interception.command as rules
    from meshdns.istio import verbs

    dns_proxy.add_arguments(verb("dns-proxy", _dns_proxy, "answer DNS as Istio's agent does, alone"))
    rules.add_arguments(verb("rules", rules.run, "print or load interception rules, alone"))
    verbs.validate_arguments(verb("validate", verbs.validate, "check Kubernetes and Istio YAML"))
    verbs.explain_arguments(verb("explain", verbs.explain_verb, "which way a name of the YAML takes, and why"))


def _dns_proxy(options: argparse.Namespace) -> int:
    from meshdns.dnsproxy import command

    return command.serve(options)


def _plan_options(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """What to measure, in one of several ways."""
    parser.add_argument("--keep", action="store_true", help="leave the testbed up afterwards")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", default="quick", help=f"{', '.join(plans.shipped())}, or a TOML file (default: quick)")
    what.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with an unfinished run (its own plan)")
    return what


def _doctor(_: argparse.Namespace) -> int:
    from meshdns.lab.compose import doctor

    findings = doctor.examine(_nets(), _project())
    print(doctor.table(findings))
    return errors.EnvironmentProblem.exit_code if any(f.state == "missing" for f in findings) else 0


def _engine(options: argparse.Namespace) -> int:
    from meshdns.lab import world as worlds
    from meshdns.lab.compose import engine, testbed

    if options.browser:
        browser = engine.ensure_browser(say)
        print(browser.chromium, browser.driver)
        return 0
    engine.ensure(say)
    for tag in engine.images(say, testbed.images_of(worlds.shipped(), ())).values():
        print(tag)
    return 0


def _nets() -> Nets:
    from meshdns.core.world import Nets

    default = Nets()
    names = ("pods", "world", "plane")
    return Nets(*(os.environ.get(f"MESHDNS_{name.upper()}", getattr(default, name)) for name in names))


def _project() -> str:
    """The Compose project, and so the name of everything that belongs to this testbed."""
    from meshdns.lab.compose import testbed

    project = os.environ.get("MESHDNS_PROJECT", testbed.PROJECT)
    if not testbed.PROJECTS.fullmatch(project):
        raise errors.InputError(
            f"{project!r} cannot name a testbed",
            place="MESHDNS_PROJECT",
            step="use up to 40 of a-z, 0-9, - and _, and a letter or digit first",
        )
    return project


def _world(options: argparse.Namespace) -> World:
    """What the testbed is made of: the files that are named, else what comes with the project."""
    from meshdns.lab import world

    return world.read(options.world) if options.world else world.shipped()


def _groups(options: argparse.Namespace, world: World, groups: Collection[str]) -> frozenset[str]:
    """These, and that of Istio's own control plane where it is asked for, or nothing was recorded for the world."""
    from meshdns.core.world import LIVE
    from meshdns.lab import recording

    if options.live or world.live or LIVE in groups:  # a world is live that an unfinished run was
        return frozenset({*groups, LIVE})
    if why := next((f"{pod.pod}: {pod.needs_live}" for pod in world.up(groups) if pod.needs_live), ""):
        say(f"{why}, so Istio's own control plane starts")
    elif recording.serves(world.of(groups)):
        return frozenset(groups)
    else:
        why = "what Istio says of this world was not recorded"
        say(f"{why}: its own control plane starts (`meshdns record` records it)")
    return frozenset({*groups, LIVE})


def _bed(world: World | None = None, groups: Collection[str] = (), images: Collection[str] = ()) -> Testbed:
    """The testbed; without a world the one that is there, of which nothing is started."""
    from meshdns.lab.compose import engine, testbed

    nets, project = _nets(), _project()
    state = testbed.state_of(project)
    if world is None:
        engine.find()
        return testbed.Testbed({}, nets, project, state, world=testbed.world_of(state))
    testbed.require_nets(nets)
    engine.ensure(say)
    tags = engine.images(say, images or testbed.images_of(world, groups))
    return testbed.Testbed(tags, nets, project, state, frozenset(groups), world)


def _used(bed: Testbed, options: argparse.Namespace, what: str = "") -> contextlib.AbstractContextManager[None]:
    """Nobody else uses this testbed meanwhile."""
    return bed.exclusive(f"meshdns {options.name}{what}", force=options.force, announce=say)


def _up(options: argparse.Namespace) -> int:
    world = _world(options)
    groups = world.groups if options.live else world.groups - world.live_groups
    bed = _bed(world, _groups(options, world, groups))
    with _used(bed, options):
        bed.up(say)
    say("the testbed is up; `meshdns status` shows it, `meshdns down` removes it")
    return 0


def _status(_: argparse.Namespace) -> int:
    from tabulate import tabulate

    from meshdns.lab import controlplane, status

    bed = _bed()
    rows = status.rows(bed)
    if not rows:
        raise errors.TestbedError("the testbed is not up", step="run `meshdns up`")
    print(tabulate(rows, status.COLUMNS, tablefmt="plain"))
    if bed.world.live:
        print("", *controlplane.summary(bed), sep="\n")
    return 0


def _logs(options: argparse.Namespace) -> int:
    bed = _bed()
    if options.service:
        bed.require(options.service)
    return bed.interactive("logs", *([options.service] if options.service else []))


def _exec(options: argparse.Namespace) -> int:
    if not options.command:
        raise errors.InputError("no command is given", place="meshdns exec", step="e.g. `meshdns exec dns-coredns sh`")
    bed = _bed()
    bed.lock.ask(force=options.force, announce=say)
    bed.require(options.service)
    terminal = [] if sys.stdin.isatty() else ["-T"]
    return bed.interactive("exec", *terminal, options.service, *options.command)


def _down(options: argparse.Namespace) -> int:
    bed = _bed()
    with _used(bed, options):
        for line in bed.down():
            say(line)
    return 0


def _run(options: argparse.Namespace) -> int:
    what, blocks = _plan(options)
    if options.dry_run:
        _print_plan(what, blocks)
        return 0
    print(_measure(what, blocks, options))
    return 0


def _trace(options: argparse.Namespace) -> int:
    import json

    from meshdns.lab import observers
    from meshdns.measure import load, trace
    from meshdns.studies.path import answer

    trace.Target.parse(options.url)
    world = _world(options)
    if options.arm not in world.arms:
        raise errors.InputError("no such arm", place=options.arm, step=f"choose from {', '.join(world.arms)}")
    bed = _bed(world, _groups(options, world, {world.arms[options.arm].group}))
    with _used(bed, options), _standing(bed, keep=False), observers.opened(bed) as asking, load.Agents(bed) as agents:
        agent = agents.of(options.arm, 5)
        seen = trace.observe(bed, asking, agent, options.arm, options.url).to_json()
    print(json.dumps(seen, indent=1) if options.json else answer.traced(seen, world))
    return 0


def _record(options: argparse.Namespace) -> int:
    from meshdns.core.world import LIVE
    from meshdns.lab import live, recording

    world, folder = _world(options), options.out or recording.kept()
    bed = _bed(world, [LIVE], {at.part.image for at in live.parts_of(world, _nets())})
    with _used(bed, options), bed.plane_alone(say) as plane:
        found = plane.record()
    changed = recording.write(found, folder)
    say(f"{len(found.nodes)} sidecars asked; " + (f"changed: {', '.join(changed)}" if changed else "nothing changed"))
    print(folder)
    return 0


def _plan(options: argparse.Namespace) -> tuple[Plan, list[int]]:
    """The plan asked for and its blocks that are to be measured; an unfinished run brings its own."""
    from meshdns.measure import plan

    if options.resume:
        from meshdns import store

        unfinished = store.resume(options.resume)
        what = plan.from_json(unfinished.header.plan, str(options.resume), store.world(options.resume))
        if (unfinished.header.blocks, unfinished.header.seed) != (what.blocks, what.seed):
            place = str(options.resume / "run.json")
            raise errors.DataError("its blocks or seed are not those of its plan", place=place, step="measure again")
        return what, unfinished.missing()
    what = plan.find(options.plan, _world(options))
    return what, list(range(what.blocks))


def _print_plan(what: Plan, blocks: Sequence[int]) -> None:
    from tabulate import tabulate

    heads = ["experiment", "arm", "backend", "lookup", "name", "ndots", "arrival", "rate/s", "delay ms", "requests"]
    rows = [
        (c.experiment, c.arm, c.backend, f"{c.lookup} {c.qtype}", c.name_kind, c.ndots, c.arrival, f"{c.rate_hz:g}",
         f"{c.dns_delay_ms:g}", t.count)
        for number in blocks[:1] for t in what.block(number) for c in [t.cell]
    ]  # fmt: skip
    print(f"about {what.measuring_s(blocks) / 60:.1f} minutes in all, {len(blocks)} blocks; the first:\n")
    print(tabulate(rows, heads, tablefmt="plain"))


def _measure(what: Plan, blocks: Sequence[int], options: argparse.Namespace) -> Path:
    """The folder of a finished run. However it ends, the testbed is as before and what is complete is stored."""
    from meshdns import store

    store.require_writable(options.resume or paths.RUNS)
    with _measuring(options, what):
        bed = _bed(what.world, _groups(options, what.world, what.groups()))
        with _used(bed, options, f", plan {what.name}"):
            return _execute(what, blocks, bed, options)


def _execute(what: Plan, blocks: Sequence[int], bed: Testbed, options: argparse.Namespace) -> Path:
    from meshdns.core.progress import Progress
    from meshdns.measure import run

    before = set(paths.RUNS.glob("*.partial"))
    try:
        with _standing(bed, options.keep), Progress(what.measuring_s(blocks), "measuring") as progress:
            folder = run.execute(what, bed, paths.RUNS, progress, options.resume)
    except (KeyboardInterrupt, errors.MeshdnsError, OSError) as problem:
        told = errors.storage(problem) if isinstance(problem, OSError) and errors.is_storage(problem) else problem
        for begun in {*paths.RUNS.glob("*.partial")} - before or {options.resume} - {None}:
            _tell_go_on(begun, what, told)
        raise told from None
    _tell_invalid(folder)
    return folder


def _tell_go_on(folder: Path, what: Plan, told: BaseException) -> None:
    """How an unfinished run stands, and how to go on with it."""
    from meshdns import store

    how = f"go on with `meshdns run --resume {folder}`"
    _tell_invalid(folder)
    say(f"{len(store.stored(folder))} of {what.blocks} blocks are stored; {how}")
    if isinstance(told, errors.MeshdnsError):
        told.go_on(how)


def _tell_invalid(folder: Path) -> None:
    from meshdns import store
    from meshdns.measure import validity

    with contextlib.suppress(errors.DataError):  # a run that is damaged has been told of
        if records := store.records(folder):
            say(validity.summary(records))


def _measuring(options: argparse.Namespace, what: Plan) -> contextlib.AbstractContextManager[None]:
    """Nobody else measures on this machine meanwhile."""
    from meshdns.lab import locks

    use = f"meshdns {options.name}, plan {what.name}, testbed {_project()}"
    return locks.machine().hold(use, force=options.force, announce=say)


@contextlib.contextmanager
def _standing(bed: Testbed, keep: bool) -> Iterator[None]:
    """The testbed is up inside, and afterwards as it was before."""
    was_up = bed.is_up()
    try:
        bed.up(say)
        yield
    finally:
        if not (keep or was_up):
            bed.down()


def _report(options: argparse.Namespace) -> int:
    from meshdns import report, store
    from meshdns.lab import locks

    notebooks = report.notebooks_in(paths.NOTEBOOKS)
    parameters: dict[str, object] = {name: report.parameter(value) for name, value in options.parameters}
    report.check_parameters(parameters, notebooks)
    store.require_writable(options.out)
    if options.runs:
        if options.runs.exists():  # else it is told at once, whoever measures
            locks.machine().ask(force=options.force, announce=say)
        print(_publish(options.runs, options.out, parameters, notebooks))
        return 0
    what, blocks = _plan(options)
    report.check_parameters(parameters, notebooks, {each.name for each in what.experiments})
    with _measuring(options, what):  # until it is published: that takes the CPUs as well
        runs = _measure(what, blocks, options)
        try:
            index = _publish(runs, options.out, parameters, notebooks)
        except (KeyboardInterrupt, errors.MeshdnsError, OSError):
            say(f"the run is finished and stored; publish it with `meshdns report --runs {runs}`")
            raise
    print(index)
    return 0


def _publish(runs: Path, out: Path, parameters: Mapping[str, object], notebooks: Sequence[Path]) -> Path:
    """The report's first page."""
    from meshdns import report
    from meshdns.core.progress import Progress

    with Progress(len(notebooks), "publishing", unit="") as progress:
        name = runs.resolve().name or "runs"  # `.` and `..` too have names, and only `/` has none
        return report.publish(runs, out / name, parameters, notebooks, progress.stage)
