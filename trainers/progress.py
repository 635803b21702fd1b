"""What one sees of a run: a live line, metrics.jsonl, TensorBoard files and a closing table.

Only rank 0 makes a `Recorder`. Figures carry their unit in the name where they have one.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from services.errors import SeitError, StoreError
from services.shards.store import open_store
from services.wire.seit import v1 as wire
from trainers.checkpoint import METRICS
from trainers.figures import figure_line, figure_lines
from trainers.reports import as_text

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
STREAMS = "streams"
_UPLOAD_SECONDS = 30.0
_WORTH_A_WORD = 0.01  # share of the time lost in stalls from which on their cause is named
_FLOW_SECONDS = 5.0
_LINE_SECONDS = 5.0  # between log lines where there is no terminal to draw on


class Recorder:
    """Keeps a run's figures in OUT/metrics.jsonl and OUT/tensorboard, from step `start` on.

    What an interrupted run recorded after its last checkpoint is dropped, so the files read like
    those of a run that was never interrupted. On an object store they are uploaded as it goes.
    Raises: FormatError for figures that are damaged elsewhere than in a last line that was cut off;
    StoreError, here and below, where the folder cannot be written to: a disk that is full.
    """

    def __init__(self, out: str, start: int) -> None:
        self._store = open_store(out)
        local = self._store.local_path(METRICS)
        self._uploads: ThreadPoolExecutor | None = None
        if local is None:
            self._uploads = ThreadPoolExecutor(1, thread_name_prefix="seit-figures")
        self._pending: Future[None] | None = None
        self._uploaded_at, self._sizes = time.monotonic(), dict[Path, int]()
        self._scratch = tempfile.TemporaryDirectory() if local is None else None
        folder = Path(self._scratch.name) if self._scratch else Path(self._store.url)
        self._folder = folder
        with self._written():
            folder.mkdir(parents=True, exist_ok=True)
        earlier = self._store.read(METRICS) if self._store.exists(METRICS) else b""
        kept = _up_to(start, earlier, f"{self._store.url}/{METRICS}")
        if kept != earlier:
            self._store.write(METRICS, kept)
        with self._written():
            if local is None:
                (folder / METRICS).write_bytes(kept)
            self._lines = (folder / METRICS).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=start + 1)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """One line of figures of `step` (steps done, from 1)."""
        with self._written():
            self._lines.write(figure_line(step, values))
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make what was recorded readable by others.

        On an object store that is an upload, made aside and now and then, as it takes whole files.
        """
        with self._written():
            self._lines.flush()
            self._board.flush()
        if self._uploads is None or (self._pending and not self._pending.done()):
            return
        now = time.monotonic()
        if now - self._uploaded_at >= _UPLOAD_SECONDS:
            self._uploaded_at = now
            self._pending = self._uploads.submit(self._upload)

    def standing(self) -> Callable[[], object]:
        """`flush` now, whenever the last upload was; what returns once all so far is in the folder.

        A checkpoint waits for it: who goes on from there records nothing of the steps before.
        """
        self.flush()
        if self._uploads is None:
            return lambda: None
        self._uploaded_at = time.monotonic()
        self._pending = self._uploads.submit(self._upload)
        return self._pending.result

    def _upload(self) -> None:
        """Put what grew; a failure is logged, and what is missing goes with the next upload."""
        try:
            for path in sorted(self._folder.rglob("*")):
                size = path.stat().st_size
                if path.is_file() and self._sizes.get(path) != size:
                    self._store.write(str(path.relative_to(self._folder)), path.read_bytes())
                    self._sizes[path] = size
        except SeitError as error:
            logger.warning("the run's figures did not reach %s: %s", self._store.url, error)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the run's figures could not be written to {self._folder} ({error}): the run ends"
                " there, and its last checkpoint stands; make room, or allow it to write there, and"
                " the same command goes on from that checkpoint"
            ) from error

    def close(self) -> None:
        """Flush and let go of the files; a last upload that fails is logged."""
        with self._written():
            try:
                self._lines.close()
            finally:
                self._board.close()
        if self._uploads is None:
            return
        self._uploads.shutdown()
        self._upload()
        if self._scratch is not None:
            self._scratch.cleanup()


def _up_to(start: int, data: bytes, where: str) -> bytes:
    """The lines of figures up to step `start`. where: as `figure_lines`, which raises."""
    lines = figure_lines(data, where)
    return b"".join(line + b"\n" for line, step, _ in lines if step <= start)


class FlowFile:
    """OUT/streams/rank-R.json: what flows through a rank's stream, for the stats service.

    Written now and then by a thread; a write that fails is logged, as training does not need it.
    """

    def __init__(self, out: str, rank: int) -> None:
        self._store, self._name = open_store(out), f"{STREAMS}/rank-{rank}.json"
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="seit-flow")
        self._pending: Future[None] | None = None
        self._told_at = -_FLOW_SECONDS

    def publish(self, flow: wire.Flow) -> None:
        """Write it, unless the last one is still young or under way."""
        now = time.monotonic()
        if now - self._told_at >= _FLOW_SECONDS and not (self._pending and self._pending.running()):
            self._told_at = now
            self._pending = self._writer.submit(self._write, flow)

    def close(self, flow: wire.Flow) -> None:
        """Write the last one and end the thread. A finished run that is started again has
        nothing to tell: its older word stands.
        """
        if flow.rows or flow.state != "finished" or not self._store.exists(self._name):
            self._writer.submit(self._write, flow)
        self._writer.shutdown()

    def _write(self, flow: wire.Flow) -> None:
        try:
            self._store.write(self._name, flow.to_json(indent=2).encode())
        except StoreError as error:
            logger.warning("what flows was not published: %s", error)


class ProgressLine:
    """Loss, images/s, share of time stalled, and time left: drawn live, or logged now and then.

    total: steps of the whole run; start: the step it goes on from.
    """

    def __init__(self, name: str, start: int, total: int) -> None:
        self._name, self._start, self._total = name, start, total
        self._began = self._spoke = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(name, total=total, completed=start, note="")
            self._bar.start()

    def update(
        self, step: int, loss: float, rows_per_second: float, stalled_share: float, cause: str
    ) -> None:
        """Show where the run stands after `step` steps. cause: what stalls are mostly due to."""
        now = time.monotonic()
        left = (now - self._began) / max(1, step - self._start) * (self._total - step)
        eta = timedelta(seconds=round(left))
        note = (
            f"loss {loss:.4f}  {rows_per_second:,.0f} images/s  "
            f"stalled {stalled_share:.1%}{f' ({cause})' if cause else ''}  ETA {eta}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif now - self._spoke >= _LINE_SECONDS or step in (self._total, self._start + 1):
            self._spoke = now
            logger.info("%s step %d/%d  %s", self._name, step, self._total, note)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def stall_cause(flow: wire.Flow) -> str:
    """What the consumer mostly waited for, where that is worth a word."""
    if flow.stall_seconds < _WORTH_A_WORD * flow.seconds:
        return ""
    storage = flow.stall_storage_seconds >= flow.stall_augmentation_seconds
    return "storage" if storage else "augmentation"


def closing_table(title: str, figures: Mapping[str, float]) -> str:
    """A run's last figures as a table, in text."""
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4f}" if value % 1 else f"{value:,.0f}")
    return as_text(table, width=72)
