"""The state of a run as one file on any store: whole or absent, and read without unpickling code.

    OUT/run.json                       the configuration: whose folder this is
    OUT/checkpoints/step-00000100.pt   weights, EMA, optimizer, generators, stream position
    OUT/checkpoints/best.pt            the same, at the best validation so far
    OUT/model.safetensors              weights for others, with the configuration as metadata

Files are written by a thread from a copy in host memory, so training goes on meanwhile.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from services.errors import FormatError, InvalidInputError, NotFoundError
from services.folders import alone
from services.shards.store import Store, open_store
from services.tokens.weights import check_records
from trainers.models.weights import TORCH_SUFFIXES, read_url
from trainers.reports import read_json

FORMAT = 1
FOLDER = "checkpoints"
BEST = "best.pt"
MODEL = "model.safetensors"
RUN = "run.json"
METRICS = "metrics.jsonl"
HISTORY = "history"
"""Entry of run.json: what a run was allowed to change, and when."""

_HELD_SECONDS = 10.0
_LEFT = re.compile(r"\.(?:step-\d+|best)\.pt\.[0-9a-f]+\.tmp")  # by a process killed at its write
_NAME = re.compile(r"step-(\d{8,})\.pt")
_HEADER_LIMIT = 100_000_000  # bytes: the longest header that the safetensors format allows


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if nothing had happened.

    step: optimizer steps done. model, ema: state dicts; ema is None where no average is kept.
    optimizer: its state dict. rng: (world, S) uint8, state of each rank's generators.
    cursor: position of the stream after `step` steps. config: the run's configuration as JSON.
    metrics: figures of the last validation, and `best`, the best so far; `validation_owed` where
    the run was told to go before this step was validated.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    rng: Tensor
    cursor: bytes
    config: str
    metrics: dict[str, float]


class Checkpoints:
    """The checkpoints of one run, newest `keep` of them and the best.

    out: URL of the run's folder.
    """

    def __init__(self, out: str, keep: int) -> None:
        self._store = open_store(out).child(FOLDER)
        self._keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="seit-checkpoint")
        self._pending: Future[None] | None = None

    def steps(self) -> list[int]:
        """Steps of the checkpoints that stand, oldest first."""
        return _steps(self._store)

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, in host memory. Raises: NotFoundError, FormatError."""
        return load_checkpoint(self._store, _name(step))

    def save(
        self,
        checkpoint: Checkpoint,
        *,
        best: bool = False,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        """Copy the state now and write it in the background, to best.pt as well if it is the best.

        after: returns when what must stand before the checkpoint does; called in the background.
        Waits for the write before this one, and raises what went wrong with that.
        """
        self.wait()
        copy = replace(
            checkpoint,
            **{
                name: _to_host(getattr(checkpoint, name))
                for name in ("model", "ema", "optimizer", "rng")
            },
        )
        self._pending = self._writer.submit(self._write, copy, best, after)

    def wait(self) -> None:
        """Return when everything handed to `save` stands on the store; raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """`wait`, and end the thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def _write(self, checkpoint: Checkpoint, best: bool, after: Callable[[], object]) -> None:
        after()
        plain = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **plain}, buffer)
        data = buffer.getvalue()
        if best:  # first: a run killed between the two goes on from before, and finds it again
            self._store.write(BEST, data)
        self._store.write(_name(checkpoint.step), data)
        left = [name for name in self._store.list() if _LEFT.fullmatch(name)]
        for name in [*map(_name, self.steps()[: -self._keep]), *left]:
            self._store.delete(name)


def checkpoint_steps(out: str) -> list[int]:
    """Steps of the checkpoints that stand in the folder of a run, oldest first."""
    return _steps(open_store(out).child(FOLDER))


def _steps(store: Store) -> list[int]:
    found = (_NAME.fullmatch(name) for name in store.list())
    return sorted(int(match[1]) for match in found if match)


def load_checkpoint(store: Store, name: str) -> Checkpoint:
    """One checkpoint file, in host memory: a device has no room for a second model, its average and
    an optimizer beside those that it trains.

    Raises: NotFoundError; FormatError if it is damaged or newer.
    """
    where = f"{store.url}/{name}"
    if not store.exists(name):
        raise NotFoundError(f"there is no checkpoint {where}: check the folder and the step")
    data = io.BytesIO(store.read(name))
    try:
        check_records(data)
        loaded = torch.load(data, map_location="cpu", weights_only=True)
    except MemoryError:
        raise  # may say nothing of the file
    # As in `read_torch`: of damaged bytes torch raises whatever they lead to.
    except Exception as error:
        raise _damaged(where, f"{type(error).__name__}: {error}") from error
    found = loaded.pop("format", None) if isinstance(loaded, dict) else None
    if found != FORMAT:
        raise FormatError(
            f"{where} has checkpoint format {found}, this program reads {FORMAT}: use the version"
            " of seitpp that wrote it, or start a new run in another folder"
        )
    if loaded.keys() != {field.name for field in fields(Checkpoint)}:
        raise _damaged(where, f"it holds {', '.join(map(str, loaded))}")
    return Checkpoint(**loaded)


def _damaged(where: str, why: str) -> FormatError:
    return FormatError(
        f"{where} is not a checkpoint of this program, or is damaged ({why}); delete it to resume"
        " from the one before"
    )


@contextmanager
def owned(
    out: str, identity: Mapping[str, Any], may_differ: Collection[str] = ()
) -> Iterator[None]:
    """`claim` the folder, and keep other processes of this machine out as long as this one lives.

    One that is there is waited for a little: a worker that is being started again may still be
    ending. On an object store, or a file system without locks, nobody is kept out.

    Raises: as `claim`; StoreError if another process stays, or there can be no such folder.
    """
    file = open_store(out).local_path(RUN)
    taken = (
        f"another process trains into {out}: both would write the same checkpoints and figures, so"
        " nothing was written; wait for its end, stop it, or give another --out"
    )
    with nullcontext() if file is None else alone(file.parent, taken, _HELD_SECONDS):
        claim(out, identity, may_differ)
        yield


def claim(out: str, identity: Mapping[str, Any], may_differ: Collection[str] = ()) -> None:
    """Make `out` the folder of the run that `identity` describes, or find that it already is.

    A run that never got to a checkpoint gives way to a new one.
    may_differ: parts (`data.version`) that the run was allowed to change; that is noted there.

    Raises: InvalidInputError if another run stands there; nothing is written then.
    """
    store = open_store(out)
    wanted = json.loads(json.dumps(identity))
    saved = [name for name in store.list(FOLDER) if name.endswith(".pt")]
    results = [name for name in (MODEL,) if store.exists(name)] + saved[:1]
    if store.exists(RUN):
        stands = read_json(store, RUN)
        history = stands.pop(HISTORY, []) if results else []
        here, there = _flat(wanted), _flat(stands)
        changed = {
            key: f"{key} is {there.get(key, 'not set')!r} there, {here.get(key, 'not set')!r} here"
            for key in sorted({*here, *there})
            if here.get(key, "not set") != there.get(key, "not set")
        }
        differing = [text for key, text in changed.items() if not key.startswith(tuple(may_differ))]
        if results and changed and not differing:
            noted = {key: [there.get(key), here.get(key)] for key in changed}
            history.append({"when": datetime.now(UTC).isoformat(), "changed": noted})
        if history:
            wanted[HISTORY] = history
        if differing and results:
            raise InvalidInputError(
                f"{out} holds another run: {'; '.join(differing)}. Nothing was changed there;"
                " give another --out, or the same options to resume it"
            )
    elif results or store.exists(METRICS):
        raise InvalidInputError(
            f"{out} holds {', '.join(results) or METRICS} of an unknown run (there is no {RUN}"
            " beside it), which would be overwritten; give another --out"
        )
    store.write(RUN, json.dumps(wanted, indent=2).encode())


def claimed(out: str) -> dict[str, Any]:
    """The identity of the run that stands in `out`, {} if none does."""
    store = open_store(out)
    return read_json(store, RUN) if store.exists(RUN) else {}


def export(out: str, model: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write OUT/model.safetensors: the weights alone, with `metadata` in its header."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.items()}
    open_store(out).write(MODEL, save_tensors(tensors, dict(metadata)))


def load_export(url: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of an exported model; `url` names the file or the run's folder.

    Raises: NotFoundError, FormatError.
    """
    folder, name = (url.rstrip("/"), MODEL)
    if url.endswith(".safetensors"):
        folder, _, name = url.rpartition("/")
    store = open_store(folder or ".")
    if not store.exists(name):
        raise NotFoundError(
            f"there is no exported model {store.url}/{name}: it appears when a run ends; name the"
            " folder of a finished run, or a .safetensors file"
        )
    data = store.read(name)
    try:
        length = int.from_bytes(data[:8], "little")
        if not 0 < length <= min(len(data) - 8, _HEADER_LIMIT):
            raise ValueError(f"header of {length} bytes in a file of {len(data)}")
        header = json.loads(data[8 : 8 + length])
        return load_tensors(data), header.get("__metadata__", {})
    except Exception as error:
        raise FormatError(
            f"{store.url}/{name} is not a whole safetensors file ({error}): copy it again"
        ) from error


def load_weights(url: str) -> dict[str, Tensor]:
    """Tensors of a model to start from: `load_export`'s, or those of a checkpoint that torch wrote,
    the published code's among them. Errors as there and of `read_url`.
    """
    return read_url(url) if url.endswith(TORCH_SUFFIXES) else load_export(url)[0]


def _name(step: int) -> str:
    return f"step-{step:08d}.pt"


def _to_host(value: Any) -> Any:
    """The same nest of dicts and lists with its tensors copied to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _to_host(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_host(inner) for inner in value)
    return value


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
