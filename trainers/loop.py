"""The training loop: any iterable of batches in, weights and figures out. Knows nothing of Ray.

A step is one optimizer update on the global batch: each rank computes its share of the rows, and
gradients are those of the mean over all rows that exist, whatever the number of ranks. Figures stay
on the device until a reading (every `loop.log_every` steps), so a step never waits for the device.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from services.errors import CursorMismatchError, InvalidInputError, SeitError
from services.plan.draws import hash_key
from services.stream.batch import StreamBatch
from trainers.average import build_average
from trainers.checkpoint import Checkpoint, Checkpoints, export, owned
from trainers.config import Run
from trainers.optim import (
    build_adamw,
    clip_gradient,
    cosine_factor,
    peak_rate,
    polynomial_factor,
    update,
)
from trainers.parallel import compile_model, plain, reshard, shared_out, spread, unsynced, whole
from trainers.progress import FlowFile, ProgressLine, Recorder, stall_cause
from trainers.ranks import (
    from_first,
    gather,
    generator_state,
    restore_generators,
    sum_over_ranks,
)
from trainers.task import Stream, Task, WorkerContext, better
from trainers.validation import measure
from trainers.waiting import Agreement, Batches

if TYPE_CHECKING:
    from timm.utils.model_ema import ModelEmaV3

__all__ = ["DivergedError", "Stream", "Task", "WorkerContext", "train"]

logger = logging.getLogger(__name__)

_OWED = "validation_owed"
"""Among a checkpoint's figures: its step was to be validated, but the run was told to go."""
_LOGGED_FIGURES = 8  # of a validation, the loss first; metrics.jsonl and TensorBoard have them all


class DivergedError(SeitError):
    """Loss or gradient stopped being finite; no update was made with it."""


def train(config: Run, context: WorkerContext, task: Task) -> dict[str, float]:
    """Train to the end, or until `context.should_stop`; resumes the run that stands in config.out.

    Returns the last figures; `finished` is 0 if the run was stopped.

    Raises: as `owned` for the folder; DivergedError; CursorMismatchError.
    """
    own = owned(config.out, config.identity(), config.may_differ)
    with own if context.rank == 0 else nullcontext():
        return _train(config, context, task)


def _train(config: Run, context: WorkerContext, task: Task) -> dict[str, float]:
    if config.loop.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(config.loop.deterministic)
    checkpoints = Checkpoints(config.out, config.loop.keep)
    try:
        trainer = _Trainer(config, context, task, checkpoints)
        failed = False
        try:
            return trainer.run()
        except Exception as error:
            # Any other error of one rank among several may be all that it hears of another's death,
            # after which the group goes on: nobody shall be woken for that.
            failed = context.world == 1 or isinstance(error, SeitError)
            raise
        finally:
            trainer.close(failed)
    finally:
        checkpoints.close()
        torch.use_deterministic_algorithms(before)


class _Trainer:
    def __init__(
        self, config: Run, context: WorkerContext, task: Task, checkpoints: Checkpoints
    ) -> None:
        self._config, self._context, self._task = config, context, task
        self._checkpoints = checkpoints
        loop, optim, device = config.loop, config.optim, context.device
        self._step, self._metrics = self._newest(), dict[str, float]()
        self._saved = self._step
        self._stopping = self._owed = False  # a stop was asked for; a validation is due
        self._agreement = Agreement(context.world)
        torch.manual_seed(hash_key("weights", loop.seed))  # the same weights on every rank
        self._model = task.build_model(fresh=self._step == 0).to(device)
        parallel = config.cluster.parallel
        self._ema: ModelEmaV3 | None = None
        if loop.ema:  # tables of positions, whole on each rank, do not mix with shards
            self._ema = build_average(self._model, loop.ema, buffers=parallel != "fsdp")
        saved = checkpoints.load(self._step) if self._step else None
        if saved is not None:
            self._model.load_state_dict(saved.model)
            if self._ema is not None and saved.ema is not None:
                self._ema.module.load_state_dict(saved.ema)
        if loop.compile:
            compile_model(self._model, parallel)
        self._forward = spread(self._model, parallel, device, context.world)
        if self._ema is not None and parallel == "fsdp":
            spread(self._ema.module, parallel, device, context.world)
        self._optimizer = build_adamw(
            self._model,
            optim.base_lr,
            (optim.beta1, optim.beta2),
            optim.weight_decay,
            optim.layer_decay,
        )
        torch.manual_seed(hash_key("dropout", loop.seed, context.rank))
        self._stream = context.open_train(None if saved is None else self._resume(saved))
        self._total = loop.epochs * self._stream.steps_per_epoch
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        self._pending: list[tuple[int, int, float, Tensor]] = []
        self._waited, self._read_at = 0.0, time.monotonic()
        self._flows = FlowFile(config.out, context.rank)
        self._recorder: Recorder | None = None
        self._line: ProgressLine | None = None
        if context.rank == 0:
            self._recorder = Recorder(config.out, self._step)
            self._line = ProgressLine(task.name, self._step, self._total)

    def run(self) -> dict[str, float]:
        with self._taken(self._stream) as batches:
            self._steps(batches)
        self._checkpoints.wait()
        if self._step == self._total and not self._stopping:
            context, lacks = self._context, int(self._task.lacks(self._config.out))
            if from_first(lacks, context.device, context.world):
                self._measure()
        finished = self._step == self._total and not self._stopping
        if finished:
            self._export()
        return {"step": self._step, "finished": float(finished), **self._metrics}

    def _steps(self, batches: Batches) -> None:
        """Train until the last step, or until a stop was asked for."""
        loop, per_epoch = self._config.loop, self._stream.steps_per_epoch
        if self._owed:
            improved = self._validate()
            if not self._owed:
                self._save(best=improved)
        while self._step < self._total and not self._stopping:
            batch = batches.next()
            self._waited += batches.waited
            if batches.stopped:
                self._stopping = True
                self._keep()
                return
            self._train_step(self._checked(batch))
            self._step += 1
            last = self._step == self._total
            epoch, inside = divmod(self._step, per_epoch)
            self._owed = due = last or (inside == 0 and epoch % loop.validate_every == 0)
            save = last or self._step % loop.checkpoint_every == 0
            if due or save or self._step % loop.log_every == 0:
                save |= self._read()
            # One who stops is in a hurry: the figures are found when the run goes on.
            improved = due and self._validate()
            # What was saved within the validation says that it is owed.
            if save or improved or self._stopping or self._saved == self._step:
                self._save(best=improved)

    def _taken(self, stream: Iterable[StreamBatch]) -> Batches:
        return Batches(stream, self._context, self._agreement, self._keep)

    def _keep(self) -> None:
        """Save the step that was made last, if it is not saved yet."""
        if self._pending:
            self._read()
        if self._step != self._saved:
            self._save(best=False)

    def close(self, failed: bool = False) -> None:
        flow = self._stream.flow()
        # One that runs was left to itself, while it waited for its storage.
        if failed or flow.state == "running":
            flow = replace(flow, state="failed" if failed else "stopped")
        self._flows.close(flow)
        if self._line is not None:
            self._line.close()
        if self._recorder is not None:
            self._recorder.close()

    def _checked(self, batch: StreamBatch | None) -> StreamBatch:
        if batch is None or batch.step != self._step:
            raise CursorMismatchError(
                f"the stream gave {'nothing' if batch is None else f'step {batch.step}'} where step"
                f" {self._step} of {self._total} was due: it was opened for another run"
            )
        if len(batch) < self._config.loop.grad_accum:
            raise InvalidInputError(
                f"loop.grad_accum is {self._config.loop.grad_accum}, but a worker has only"
                f" {len(batch)} rows in a step: choose at most that many parts"
            )
        self._task.check(batch)
        return batch

    def _train_step(self, batch: StreamBatch) -> None:
        context, device = self._context, self._context.device
        self._forward.train()
        if device.type == "cuda":
            batch = batch.pin()
        batch = batch.to(device, non_blocking=True)
        weight = batch.weight.sum()
        total = sum_over_ranks(weight.clone(), context.world)
        parts = batch.parts(self._config.loop.grad_accum)
        loss_sum = torch.zeros((), device=device)
        for number, part in enumerate(parts, start=1):
            with unsynced(self._forward, number < len(parts)):
                with self._autocast():
                    loss = self._task.loss(self._forward, part)
                # DDP averages over ranks: times world / total it is the mean over all rows.
                (loss * (context.world / total.clamp(min=1))).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
        lr, limit = self._rate(), self._config.optim.clip
        norm = plain(clip_gradient(self._parameters, limit))
        update(self._optimizer, lr, norm)  # skipped where it is not finite; `_read` names the step
        if self._ema is not None:
            self._ema.update(self._model, self._step + 1)
        self._task.updated(self._model, self._step, self._total, context.world)
        self._pending.append((self._step, batch.epoch, lr, torch.stack([loss_sum, weight, norm])))

    def _rate(self) -> float:
        """Learning rate of this step, for parameters that layer decay leaves alone."""
        optim = self._config.optim
        peak = peak_rate(
            optim.base_lr, self._config.order.global_batch, optim.base_batch, optim.base_power
        )
        warmup = round(optim.warmup_epochs * self._stream.steps_per_epoch)
        floor = optim.min_lr / peak
        if optim.schedule == "polynomial":
            return peak * polynomial_factor(self._step, self._total, warmup, optim.power, floor)
        return peak * cosine_factor(self._step, self._total, warmup, floor)

    def _read(self) -> bool:
        """Bring pending figures to the host, check and record them; whether a rank sees a node
        leave.
        """
        context = self._context
        table = torch.stack([row for *_, row in self._pending]).double()  # (n, loss weight norm)
        leaves = table.new_tensor([[float(context.node_leaves()), 0.0]])
        shared = torch.cat([table[:, :2], leaves])
        sums = sum_over_ranks(shared, context.world).cpu()
        losses, weights = sums[:-1].unbind(1)
        norms = table[:, 2].cpu()
        for (step, epoch, lr, _), loss, norm in zip(
            self._pending, (losses / weights.clamp(min=1)).tolist(), norms.tolist(), strict=True
        ):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(
                    f"step {step} (epoch {epoch}): loss {loss}, gradient norm {norm}; no update was"
                    " made with it. The last checkpoint is sound, but leads here again: start a new"
                    " run (another --out) with a lower learning rate, a longer warm-up or a lower"
                    " clip, or with --loop.precision float32"
                )
            self._record(step + 1, {"epoch": epoch, "loss": loss, "lr": lr, "grad_norm": norm})
        now = time.monotonic()
        elapsed = max(now - self._read_at, 1e-9)
        self._metrics |= {
            "loss": float(losses[-1] / weights[-1].clamp(min=1)),
            "images_per_second": float(weights.sum()) / elapsed,
            "stalled_share": min(1.0, self._waited / elapsed),
        }
        flow = self._stream.flow()
        self._flows.publish(flow)
        if self._line is not None and self._recorder is not None:
            self._line.update(
                self._step,
                self._metrics["loss"],
                self._metrics["images_per_second"],
                self._metrics["stalled_share"],
                stall_cause(flow),
            )
            self._recorder.flush()
        self._pending.clear()
        self._waited, self._read_at = 0.0, now
        return bool(sums[-1, 0] > 0)

    def _measure(self) -> dict[str, float]:
        """Figures over the validation split; none where a stop came before they were found."""
        model = self._ema.module if self._ema is not None else self._model
        with self._taken(self._context.open_validation()) as batches:
            found = measure(model, self._task, self._context, self._autocast, batches)
        reshard(model)
        self._stopping = found is None
        return found or {}

    def _validate(self) -> bool:
        """Measure and record, but for a stop; whether the figures are the best yet."""
        task, found = self._task, self._measure()
        if not found:
            return False
        self._owed = False
        value, best = found[f"validation_{task.best}"], self._metrics.get("best", math.nan)
        if math.isnan(value):
            logger.warning("validation_%s is no number: this model is not the best", task.best)
        improved = better(value, best, higher=task.higher)
        self._metrics |= {**found, "best": value} if improved else found
        self._record(self._step, found)
        logger.info(
            "%s step %d: %s",
            task.name,
            self._step,
            ", ".join(f"{name} {found[name]:.4f}" for name in list(found)[:_LOGGED_FIGURES]),
        )
        self._context.report({"step": self._step, **self._metrics})
        self._read_at = time.monotonic()  # validation is not training time
        return improved

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        if self._recorder is not None:
            self._recorder.record(step, values)

    def _save(self, *, best: bool) -> None:
        context, self._saved = self._context, self._step
        rng = gather(generator_state(context.device), context.device, context.world)
        state = {
            "model": self._model.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema is not None else None,
            "optimizer": self._optimizer.state_dict(),
        }
        state = whole(state, keep=context.rank == 0)
        if self._recorder is not None:
            self._checkpoints.save(
                Checkpoint(
                    **state,
                    step=self._step,
                    rng=rng,
                    cursor=self._stream.cursor(self._step),
                    config=self._config.to_json(),
                    metrics=self._metrics | ({_OWED: 1.0} if self._owed else {}),
                ),
                best=best,
                after=self._recorder.standing(),
            )

    def _newest(self) -> int:
        """Step of the newest checkpoint, 0 if there is none; rank 0 decides for all."""
        context = self._context
        steps = self._checkpoints.steps() if context.rank == 0 else []
        newest = steps[-1] if steps else 0
        return from_first(newest, context.device, context.world)

    def _resume(self, saved: Checkpoint) -> bytes:
        """Take up what the weights apart were as at a checkpoint; the stream's position."""
        context = self._context
        self._optimizer.load_state_dict(shared_out(saved.optimizer, self._optimizer))
        self._metrics = dict(saved.metrics)
        self._owed = self._metrics.pop(_OWED, 0.0) > 0
        same = len(saved.rng) == context.world
        if not (same and restore_generators(saved.rng[context.rank], context.device)):
            # Another number of workers or kind of device: dropout differs, data and masks do not.
            torch.manual_seed(hash_key("dropout", self._config.loop.seed, context.rank, self._step))
        logger.info("%s goes on from step %d", self._task.name, self._step)
        return saved.cursor

    def _export(self) -> None:
        model = self._ema.module if self._ema is not None else self._model
        state = whole(model.state_dict(), keep=self._context.rank == 0)
        if self._context.rank != 0:
            return
        about = {
            "config": self._config.to_json(),
            "spec": json.dumps(asdict(self._context.spec)),
            "classes": json.dumps(list(self._context.classes)),
            "step": str(self._step),
        }
        export(self._config.out, state, about)
        self._task.export(model, self._config.out, self._metrics)

    def _autocast(self) -> torch.autocast:
        enabled = self._config.loop.precision == "bf16"
        return torch.autocast(self._context.device.type, torch.bfloat16, enabled=enabled)
