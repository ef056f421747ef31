"""`meshdns dns-proxy` and `python -m dnsproxy`: options checked, parts put together, run until a signal."""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import ipaddress
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from . import answer, cache, listener, nametable, wire
from .metrics import Metrics, Page
from .options import DESCRIPTION, LISTEN, add_arguments
from .proxy import Proxy
from .reactor import Reactor
from .tablefile import PERIOD_S, TableFile
from .upstream import Forwarder, Server

NAME = "dns-proxy"
MOST_TIMEOUT_MS = 600_000
MOST_TTL_S = 604_800  # a week; RFC 2181 allows more, and nobody means it
PENDING = 2048  # upstream attempts at a time; each has a descriptor
DESCRIPTORS = PENDING + 1024  # and what connections, files and sockets need
BAD_ARGUMENT, NO_PORT = 2, 3
_ADDRESS = re.compile(r"(?:\[([^\]]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?")
# Where the kernel sends what is for no address; who listens on it listens there too.
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not bound


class ArgumentError(Exception):
    """An argument that cannot be used; the message says which, why and what would do."""

    exit_code = BAD_ARGUMENT


class PortError(ArgumentError):
    """An address that is taken or not allowed."""

    exit_code = NO_PORT


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_ARGUMENT, f"{self.prog}: {message}; `{self.prog} --help` shows the options\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and serve; the exit code."""
    parser = _Parser(prog=NAME, description=DESCRIPTION)
    add_arguments(parser)
    return serve(parser.parse_args(arguments))


def serve(options: argparse.Namespace) -> int:
    """Answer until SIGTERM or SIGINT; the exit code: 0, 2 for an argument, 3 for a port that cannot be had."""
    try:
        with contextlib.ExitStack() as stack:
            _serve(options, stack)
    except ArgumentError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _serve(options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
    addresses = [_address("--listen", text) for text in options.listen or _default_listen(options)]
    named, useless = _servers(options)
    page = _address("--metrics", options.metrics) if options.metrics else None
    scope, style = _scope(options), _style(options)
    timeout_s = _number("--timeout-ms", options.timeout_ms, 1, MOST_TIMEOUT_MS) / 1000
    stale_s = _number("--serve-stale-s", options.serve_stale_s, 0, cache.MOST_TTL_S * 7)
    if stale_s and not options.cache:
        raise ArgumentError("--serve-stale-s: there is nothing stale without a cache; add --cache")
    _raise_limit()

    reactor = Reactor()
    stack.callback(reactor.close)
    bound = [_listening(address, stack) for address in addresses]
    own = [_own(datagrams) for datagrams, _ in bound]
    servers, said = _others(options, named, useless, own)
    metrics = Metrics(page is not None)
    forwarder = Forwarder(reactor, servers, timeout_s, _pending(), metrics, parallel=options.parallel)
    stack.callback(forwarder.close)
    proxy = Proxy(reactor, forwarder, metrics, style, cache.Cache(stale_s) if options.cache else None)
    stack.enter_context(_signals(reactor.stop))

    for datagrams, stream in bound:
        stack.callback(listener.Tcp(reactor, stream, proxy).close)
        stack.callback(listener.Udp(reactor, datagrams, proxy).close)
    if page:
        sock = _bound("--metrics", page, listener.listening)
        stack.callback(Page(reactor, sock, proxy.text, lambda: proxy.table is not None).close)
    if said:
        print(f"{NAME}: {said}", file=sys.stderr, flush=True)
    _watch_table(Path(options.name_table), scope, reactor, proxy, metrics)
    print(*own, sep="\n", flush=True)
    reactor.run()


def _listening(address: Server, stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """A socket for datagrams and one for connections; both are closed in the end."""
    datagrams, stream = _bound("--listen", address, listener.bind)
    stack.callback(datagrams.close)
    stack.callback(stream.close)
    return datagrams, stream


def _own(datagrams: socket.socket) -> Server:
    """The address and the port that it has."""
    address, port, *more = datagrams.getsockname()
    scope = f"%{more[1]}" if more and more[1] else ""
    return Server(datagrams.family, f"{address}{scope}", port)


def _watch_table(path: Path, scope: nametable.Scope, reactor: Reactor, proxy: Proxy, metrics: Metrics) -> None:
    """The table that is there is in force when this returns; a later one between two queries."""

    def loaded(table: nametable.NameTable) -> None:
        metrics.table_loads["good"] += 1
        proxy.swap(table)
        gc.freeze()  # a table is no garbage: searching it for cycles would hold up queries

    def wrong() -> None:
        metrics.table_loads["wrong"] += 1

    file = TableFile(path, scope, loaded, wrong)
    for _ in file.look() or ():
        pass

    def look() -> None:
        if work := file.look():
            reactor.background(work)

    reactor.every(PERIOD_S, look)


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT end the service cleanly; afterwards they mean what they meant."""
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _bound(option: str, address: Server, bind: Callable[..., Any]) -> Any:
    try:
        return bind(*address)
    except OSError as error:
        said = f"{option} {address}: {error.strerror}"
        if error.errno == errno.EADDRNOTAVAIL:
            raise ArgumentError(f"{said}; give an address of this machine") from None
        raise PortError(f"{said}; give another port, or 0 for a free one") from None


def _raise_limit() -> None:
    """As many descriptors as the bounds in this program add up to, where the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _pending() -> int:
    """Upstream attempts at a time: what the limit leaves after the clients' connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return PENDING
    return max(16, min(PENDING, soft - listener.CONNECTIONS - 64))


def _address(option: str, text: str, default_port: int | None = None) -> Server:
    """ADDR:PORT or [ADDR]:PORT; the port may be left out where there is a default."""
    match = _ADDRESS.fullmatch(text)
    port = int(match[3]) if match and match[3] else default_port
    try:
        address = ipaddress.ip_address((match[1] or match[2]) if match else "")
    except ValueError:
        port = None
    if port is None or port > 65_535 or (port == 0 and default_port is not None):
        raise ArgumentError(f"{option}: {text!r} is not ADDR:PORT; e.g. 127.0.0.1:53 or [::1]:53")
    if address.version == 4:
        return Server(socket.AF_INET, str(address), port)
    if address.ipv4_mapped:
        return Server(socket.AF_INET, str(address.ipv4_mapped), port)
    return Server(socket.AF_INET6, _scoped(option, str(address)), port)


def _scoped(option: str, address: str) -> str:
    """With its interface, if it names one, as a number."""
    plain, found, interface = address.partition("%")
    if not found:
        return plain
    try:
        number = int(interface) if interface.isdecimal() else socket.if_nametoindex(interface)
    except OSError:
        raise ArgumentError(f"{option}: {address}: there is no interface {interface}; `ip link` shows them") from None
    return f"{plain}%{number}"


def _servers(options: argparse.Namespace) -> tuple[list[Server], list[str]]:
    """Whom to ask for other names, and what resolv.conf calls a server that cannot be one."""
    if options.upstream or not options.resolv_conf:
        return [_address("--upstream", text, default_port=53) for text in options.upstream], []
    servers, useless = [], []
    for text in _nameservers(Path(options.resolv_conf)):
        try:
            servers.append(_address("nameserver", f"[{text}]" if ":" in text else text, default_port=53))
        except ArgumentError:
            useless.append(f"{text} is no address here")
    return list(dict.fromkeys(servers)), useless


def _others(
    options: argparse.Namespace, named: list[Server], useless: list[str], own: list[Server]
) -> tuple[list[Server], str]:
    """The servers but for the proxy itself; and, where no option names them, a sentence that does."""
    itself = [server for server in named if any(_is_itself(server, one) for one in own)]
    if options.upstream:
        if itself:
            raise ArgumentError(f"--upstream {itself[0]} is the proxy itself; name the real DNS server")
        return named, ""
    servers = [server for server in named if server not in itself]
    useless = [*useless, *(f"{server} is this proxy itself" for server in itself)]
    but = f" ({'; '.join(useless)})" if useless else ""
    if servers:
        return (
            servers,
            f"other names are forwarded to {', '.join(map(str, servers))}, as {options.resolv_conf} says{but}",
        )
    where = f"{options.resolv_conf} names no DNS server" if options.resolv_conf else "no DNS server is named"
    return [], f"{where}{but}, so every name that is not in the table is SERVFAIL; give --upstream to forward them"


def _is_itself(server: Server, own: Server) -> bool:
    """Whether a question to the server certainly comes back.

    The kernel may lead other addresses of this machine elsewhere: a container engine does so with its DNS server's.
    """
    asked = _LOOPBACK.get(server.address, server.address)
    here = _LOOPBACK.get(own.address, own.address)
    return (server.family, asked, server.port) == (own.family, here, own.port)


def _number(option: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise ArgumentError(f"{option}: {text!r} is not a whole number from {least} to {most}")
    return int(text)


def _scope(options: argparse.Namespace) -> nametable.Scope:
    domain = options.domain.removesuffix(".").lower()
    _wire("--domain", domain)
    search = tuple(_search(Path(options.resolv_conf))) if options.resolv_conf else ()
    return nametable.Scope(options.namespace, domain, search, options.all_search)


def _style(options: argparse.Namespace) -> answer.Style:
    ttl_s = _number("--ttl-s", options.ttl_s, 0, MOST_TTL_S)
    return answer.Style(ttl_s, options.soa, _wire("--domain", options.domain))


def _wire(option: str, name: str) -> bytes:
    try:
        return wire.encode_name(name)
    except ValueError as error:
        raise ArgumentError(f"{option}: {error}") from None


def _default_listen(options: argparse.Namespace) -> list[str]:
    """As Istio's agent: on loopback of the families in which applications ask their servers."""
    servers = _nameservers(Path(options.resolv_conf)) if options.resolv_conf else []
    families = sorted({6 if ":" in server else 4 for server in servers})
    return [LISTEN[family] for family in families or [4]]


def _nameservers(path: Path) -> list[str]:
    return [words[1] for words in _resolv_conf(path) if words[0] == "nameserver" and len(words) > 1]


def _resolv_conf(path: Path) -> list[list[str]]:
    """The words of each line that has some."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise ArgumentError(f"--resolv-conf {path}: {error.strerror}") from None
    return [words for line in lines if (words := line.split())]


def _search(path: Path) -> list[str]:
    """The search list of a resolv.conf: the last `search` or `domain` line counts (resolv.conf(5))."""
    found: list[str] = []
    for words in _resolv_conf(path):
        if words[0] in ("search", "domain"):
            found = words[1:] if words[0] == "search" else words[1:2]
    return [domain for domain in found if domain != "."]
