"""What one sees of a run: a live line, metrics.jsonl, TensorBoard files and a closing table.

Only rank 0 makes a `Recorder`. Figures carry their unit in the name where they have one.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from services.shards.store import open_store
from trainers.checkpoint import METRICS

logger = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"
_LINE_SECONDS = 5.0  # between log lines where there is no terminal to draw on


class Recorder:
    """Keeps a run's figures in OUT/metrics.jsonl and OUT/tensorboard, from step `start` on.

    What an interrupted run recorded after its last checkpoint is dropped, so the files read like
    those of a run that was never interrupted. On an object store they are uploaded by `flush`.
    """

    def __init__(self, out: str, start: int) -> None:
        self._store = open_store(out)
        local = self._store.local_path(METRICS)
        self._upload = local is None
        self._scratch = tempfile.TemporaryDirectory() if local is None else None
        folder = Path(self._scratch.name) if self._scratch else Path(self._store.url)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        earlier = self._store.read(METRICS).decode() if self._store.exists(METRICS) else ""
        whole = [line for line in earlier.splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in whole if json.loads(line)["step"] <= start)
        if kept != earlier:
            self._store.write(METRICS, kept.encode())
        if self._upload:
            (folder / METRICS).write_text(kept)
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / TENSORBOARD), purge_step=start + 1)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """One line of figures of `step` (steps done, from 1)."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Make what was recorded readable by others."""
        self._lines.flush()
        self._board.flush()
        if self._upload:
            for path in sorted(self._folder.rglob("*")):
                if path.is_file():
                    self._store.write(str(path.relative_to(self._folder)), path.read_bytes())

    def close(self) -> None:
        """Flush and let go of the files."""
        self.flush()
        self._lines.close()
        self._board.close()
        if self._scratch:
            self._scratch.cleanup()


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

    def update(self, step: int, loss: float, rows_per_second: float, stalled_share: float) -> None:
        """Show where the run stands after `step` steps."""
        now = time.monotonic()
        left = (now - self._began) / max(1, step - self._start) * (self._total - step)
        eta = timedelta(seconds=round(left))
        note = (
            f"loss {loss:.4f}  {rows_per_second:,.0f} images/s  "
            f"stalled {stalled_share:.1%}  ETA {eta}"
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


def closing_table(title: str, figures: Mapping[str, float]) -> str:
    """A run's last figures as a table, in text."""
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4f}" if value % 1 else f"{value:,.0f}")
    console = Console(width=72)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()
