"""`seit`: the data service from the command line.

Exit code 0: done; 1: a verification failed; 2: the input, or the storage, was at fault (the message
on stderr says what and how to go on); 130: interrupted. Each command imports what it needs when it
runs: `seit inspect` loads neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro
from rich.console import Console
from rich.filesize import decimal
from rich.logging import RichHandler
from rich.progress import TextColumn
from tyro.conf import Positional, subcommand

from services import cli_tables as tables
from services.cli_gallery import Gallery
from services.cli_show import show, tell
from services.cli_simulate import Simulate
from services.cli_store import (
    AddColumn,
    Diff,
    DropColumn,
    ExportRelease,
    Gc,
    ImportRelease,
    Inspect,
    Renumber,
    Root,
    Verify,
    complain,
    progress_bar,
    standing,
)
from services.cli_tokenizer import ImportTokenizer
from services.errors import InvalidInputError, SeitError

_SHOWN = 20  # unreadable pictures that are named on the screen
_CONNECTIONS = 1000  # open at a time; more are told to come back
_MAX_PORT = 65535


@dataclass(frozen=True)
class Stats:
    """Ask a running stats service what stands: all datasets, or one with its versions."""

    url: Annotated[Positional[str], tyro.conf.arg(metavar="URL", help="http://HOST:PORT")]
    dataset: Annotated[
        Positional[str | None],
        tyro.conf.arg(metavar="[DATASET]", help="one dataset; left out, the list of all"),
    ] = None

    def run(self, out: Console) -> int:
        from services.stats.client import StatsClient

        client = StatsClient(self.url)
        if self.dataset is None:
            found = list(client.datasets())
            if found:
                show(out, tables.summary_table(found))
            else:
                tell(
                    out,
                    f"No dataset stands at {self.url}: `seit ingest` makes one below the folder"
                    " that `seit serve` was given. If some should be there, see what it was given,"
                    " and its log.",
                )
        else:
            show(out, tables.storage_view(client.storage(self.dataset)))
            show(out, tables.content_view(client.labels(self.dataset), client.codes(self.dataset)))
            show(out, tables.growth_table(client.growth(self.dataset)))
            show(out, tables.health_view(client.health(self.dataset)))
        return 0


@dataclass(frozen=True)
class Streams:
    """Show what flows into runs: of a running stats service, or of a folder of runs."""

    place: Annotated[
        Positional[str],
        tyro.conf.arg(
            metavar="PLACE", help="http://HOST:PORT, or a run's folder, or one that holds runs"
        ),
    ]
    state: Annotated[
        str | None,
        tyro.conf.arg(
            help="running, finished, stopped, failed, stalled or unreadable; None for all"
        ),
    ] = None

    def run(self, out: Console) -> int:
        from services.stats.client import StatsClient
        from services.stats.streams import RANK_FILES, listed, open_runs

        if self.place.startswith(("http://", "https://")):
            found = list(StatsClient(self.place).streams(self.state))
            none = (
                f"No run has a stream at {self.place}: `seit serve` takes their folder as --runs."
            )
        else:
            found = list(listed(open_runs([self.place]), self.state))
            none = (
                f"No run stands at {self.place}, or in a folder directly below: a run is the folder"
                f" that a trainer was given as --out, with {RANK_FILES} in it once its stream has"
                " begun. Give that folder, or the one that holds it."
            )
        if found:
            show(out, tables.stream_table(found))
        elif self.state is not None:
            tell(out, f"No run at {self.place} is {self.state}; without --state all are shown.")
        else:
            tell(out, none)
        return 0


@dataclass(frozen=True)
class Token:
    """Make a bearer token for the stats service; its hash goes to FILE, itself to the screen."""

    file: Annotated[Positional[Path], tyro.conf.arg(metavar="FILE", help="as SEIT_STATS_TOKENS")]
    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME", help="of who will use it")]
    roles: Annotated[
        tuple[str, ...], tyro.conf.arg(help="read: all but rows; samples: rows and pictures")
    ] = ("read",)

    def run(self, out: Console) -> int:
        from services.stats.access import new_token

        out.print(new_token(self.file, self.name, self.roles), markup=False, soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Serve:
    """Answer what stands below ROOT, and what flows, over HTTP; / is a page, /docs the API."""

    root: Root
    runs: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(
            metavar="URL",
            help="run's folder (--out of a trainer), or one that holds runs; may be given often; "
            "without it those of SEIT_STATS_RUNS",
        ),
    ] = ()
    host: Annotated[str, tyro.conf.arg(help="address to listen at; 0.0.0.0 for all")] = "127.0.0.1"
    port: Annotated[int, tyro.conf.arg(help="TCP port; 0 for any that is free")] = 8000

    def run(self, out: Console) -> int:
        sockets = listening(self.host, self.port)
        import uvicorn

        from services.stats.app import create_app
        from services.stats.patience import Patient
        from services.stats.seldom import Seldom
        from services.stats.streams import open_runs

        app = create_app(standing(self.root), runs=open_runs(self.runs) if self.runs else None)
        port = sockets[0].getsockname()[1]
        host = f"[{self.host}]" if ":" in self.host else self.host  # as URLs have IPv6 addresses
        out.print(f"datasets of {self.root} at http://{host}:{port}/", markup=False)
        gc.collect()
        gc.freeze()  # to look over what the program is made of holds up answers for 0.1 s
        config = uvicorn.Config(
            app,
            http=Patient,
            log_level="warning",
            access_log=False,
            limit_concurrency=_CONNECTIONS,
            server_header=False,
        )
        logging.getLogger("uvicorn.error").addFilter(Seldom())
        with contextlib.suppress(KeyboardInterrupt):  # a service's usual end
            uvicorn.Server(config).run(sockets)
        return 0


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets bound to the address, one for each kind of it, before anything else is begun.

    uvicorn would take a port modulo 65536, and end with another code where one is in use.
    Raises: InvalidInputError.
    """
    if not 0 <= port <= _MAX_PORT:
        raise InvalidInputError(
            f"port {port} is outside 0..{_MAX_PORT}: nothing was started; give another --port, 0 "
            "for any that is free"
        )
    bound: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            bound.append(socket.socket(family, kind, protocol))
            bound[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                bound[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            bound[-1].bind(address)
    except (OSError, UnicodeError) as error:
        for one in bound:
            one.close()
        raise InvalidInputError(
            f"nothing can listen at port {port} of {host!r} ({error}): nothing was started; give "
            "another --port, or an address of this machine as --host, or end what has the port"
        ) from error
    return bound


@dataclass(frozen=True)
class Ingest:
    """Turn a folder of pictures into a dataset version; `seit ingest --help` shows the options."""


@dataclass(frozen=True)
class Stream:
    """Measure how fast a dataset streams through a recipe; see `seit stream --help`."""


@dataclass(frozen=True)
class Demo:
    """Train on real pictures, end to end; `seit demo --help` shows the options."""


@dataclass(frozen=True)
class StorageStudy:
    """Bytes against accuracy of ways to keep pictures; see `seit storage-study --help`."""


Command: TypeAlias = (
    Annotated[Inspect, subcommand("inspect")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Diff, subcommand("diff")]
    | Annotated[Simulate, subcommand("simulate")]
    | Annotated[Stats, subcommand("stats")]
    | Annotated[Streams, subcommand("streams")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Gallery, subcommand("gallery")]
    | Annotated[Token, subcommand("token")]
    | Annotated[Gc, subcommand("gc")]
    | Annotated[AddColumn, subcommand("add-column")]
    | Annotated[DropColumn, subcommand("drop-column")]
    | Annotated[Renumber, subcommand("renumber")]
    | Annotated[ImportRelease, subcommand("import-release")]
    | Annotated[ExportRelease, subcommand("export-release")]
    | Annotated[ImportTokenizer, subcommand("import-tokenizer")]
    | Annotated[Ingest, subcommand("ingest")]
    | Annotated[Stream, subcommand("stream")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[StorageStudy, subcommand("storage-study")]
)


_ABOUT = """Token datasets for vision training: make, look at, check and serve them.

Exit code 0: done; 1: a verification failed; 2: bad input or storage; 130: interrupted."""

_STYLE = (tyro.conf.FlagCreatePairsOff,)  # no --no-no-ray


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `seit`; ends the process with the exit code of the command."""
    args = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    try:
        sys.exit(_run(args))
    except (SeitError, OSError) as error:  # OSError: a local file or folder, or a full disk
        complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(args: list[str]) -> int:
    handler = _PASSED_ON.get(args[0]) if args else None
    if handler is not None:
        return handler(args[1:])
    command: Any = tyro.cli(Command, args=args, prog="seit", description=_ABOUT, config=_STYLE)
    code: int = command.run(Console())
    return code


def _ingest(args: list[str]) -> int:
    """The options are the job's own dataclass, whose module brings Ray and torch."""
    from services.stream.ingest import IngestConfig, ingest

    config = tyro.cli(IngestConfig, args=args, prog="seit ingest", config=_STYLE)
    with progress_bar(TextColumn("{task.fields[amount]}")) as progress:
        task = progress.add_task("pictures", total=None, amount="")

        def tell(what: str, done: int, total: int, unit: str) -> None:
            amount = f"{done:,}/{total:,}"
            if unit == "bytes":
                amount = f"{decimal(done)}/{decimal(total)}"
            progress.update(task, description=what, completed=done, total=total, amount=amount)

        report = ingest(config, tell)
    out = Console()
    show(out, tables.manifest_view(report.committed))
    for skip in report.skipped[:_SHOWN]:
        out.print(f"skipped {skip.reason}", markup=False)
    more = report.met.unreadable - len(report.skipped[:_SHOWN])
    if more:
        out.print(f"and {more:,} more, of which the manifest names the first")
    out.print(
        f"{report.rows:,} pictures in {report.seconds:.1f} s; {report.met.unreadable:,} skipped"
    )
    return 0


def _stream(args: list[str]) -> int:
    from services.stream.probe import ProbeConfig, probe

    config = tyro.cli(ProbeConfig, args=args, prog="seit stream", config=_STYLE)
    with progress_bar(TextColumn("{task.fields[rate]:,.0f} rows/s")) as progress:
        task = progress.add_task("rows", total=None, rate=0.0)
        report = probe(config, lambda rows, rate: progress.update(task, completed=rows, rate=rate))
    Console().print(
        f"{report.rows:,} rows at {report.rows_per_second:,.0f} rows/s;"
        f" the first batch came after {report.first_batch_seconds:.1f} s"
    )
    return 0


def _program(module: str) -> Callable[[list[str]], int]:
    """A program of its own: `services` never imports `trainers`."""

    def run(args: list[str]) -> int:
        # In place of this process, so that a signal reaches the program and its end is awaited.
        os.execv(sys.executable, [sys.executable, "-m", module, *args])

    return run


_PASSED_ON: Mapping[str, Callable[[list[str]], int]] = {
    "ingest": _ingest,
    "stream": _stream,
    "demo": _program("trainers.demo"),
    "storage-study": _program("trainers.storage_study"),
}
"""Commands whose options are read by what they start."""


if __name__ == "__main__":
    main()
