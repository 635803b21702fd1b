"""What `train_step` measures: the recipes' models, optimizers and batches, in their real sizes.

Needs torch and timm, and neither Ray nor any data: tokens are random, which costs a step the same.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from parts.plain_mtm import PlainMTM
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainers.config import ClassifyRun, MtmRun, Run
from trainers.models.classifier import ClassifierConfig, TokenClassifier, soft_cross_entropy
from trainers.models.mtm import MTM, Masks, MTMConfig, sample_masks
from trainers.models.sizes import MTM_DECODER
from trainers.optim import build_adamw, clip_gradient, update
from trainers.recipes.classify import finetune_base, scratch_base
from trainers.recipes.mtm import mtm_base

Recipe = Literal["mtm-base", "scratch-base", "finetune-base"]
RECIPES: tuple[Recipe, ...] = ("mtm-base", "scratch-base", "finetune-base")
CODES, CHANNELS, CLASSES = 391, 32, 1000  # of ImageNet-1k as published
_FLOP_ROWS = 2
_SAME_LOSS = 1e-4
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts by


def mtm_config(run: MtmRun) -> MTMConfig:
    """The published sizes, in the run's."""
    crop = run.augment.crop
    return MTMConfig((crop, crop), CODES, CHANNELS, run.model.encoder, MTM_DECODER)


@dataclass
class Case:
    """One recipe's training step, ready to be called again and again.

    model: on its device. rows: of a step. loss(): () mean over them.
    """

    name: str
    run: Run
    model: nn.Module
    device: torch.device
    bf16: bool
    rows: int

    def __post_init__(self) -> None:
        optim = self.run.optim
        self.optimizer = build_adamw(
            self.model,
            optim.base_lr,
            (optim.beta1, optim.beta2),
            optim.weight_decay,
            optim.layer_decay,
        )
        decay = self.run.loop.ema
        self.ema = ModelEmaV3(self.model, decay=decay) if decay else None
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.batch = batch_of(self.model, self.rows, self.device)

    def loss(self) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return loss_of(self.model, self.batch, self.run.optim.smoothing)

    def step(self) -> None:
        """One optimizer step, as the loop makes it."""
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.finish()

    def finish(self) -> None:
        """What follows the gradient: clipping, AdamW, the moving average."""
        norm = clip_gradient(self.parameters, self.run.optim.clip)
        update(self.optimizer, self.run.optim.base_lr, norm)
        if self.ema is not None:
            self.ema.update(self.model)


@dataclass
class Batch:
    """inputs: ids (N, H, W) or embeddings (N, D, H, W). masks of MTM; labels of classification."""

    inputs: Tensor
    masks: Masks | None
    label: Tensor
    mix: Tensor


def batch_of(model: nn.Module, rows: int, device: torch.device) -> Batch:
    """A batch of random tokens in the form that the model reads."""
    config = model.config
    draw = torch.Generator(device).manual_seed(1) if device.type != "meta" else None

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, device=device, generator=draw)

    grid = config.grid
    ids = (uniform(rows, *grid) * CODES).long()
    masks, inputs = None, ids
    if isinstance(config, MTMConfig):
        masks = sample_masks(uniform(rows, config.patch_count), 0.5, config)
    elif config.input == "embeddings":
        inputs = uniform(rows, CHANNELS, *grid)
    return Batch(inputs, masks, (uniform(rows) * CLASSES).long(), uniform(rows))


def loss_of(model: nn.Module, batch: Batch, smoothing: float) -> Tensor:
    """() mean loss of a batch."""
    if batch.masks is None:
        logits = model(batch.inputs)
        rows = soft_cross_entropy(logits, batch.label, batch.label.flip(0), batch.mix, smoothing)
        return rows.mean()
    out = model(batch.inputs, *batch.masks)
    loss: Tensor = out if isinstance(out, Tensor) else out.loss.mean()
    return loss


def build(recipe: Recipe, device: torch.device, size: str = "base") -> tuple[Run, nn.Module]:
    """A recipe's run and its model; size: of the encoder."""
    torch.manual_seed(0)
    if recipe == "mtm-base":
        pretraining = mtm_base()
        pretraining = replace(pretraining, model=replace(pretraining.model, size=size))
        return pretraining, MTM(mtm_config(pretraining)).to(device)
    run: ClassifyRun = scratch_base() if recipe == "scratch-base" else finetune_base()
    config = ClassifierConfig(
        input="embeddings" if recipe == "scratch-base" else "ids",
        grid=(run.augment.crop, run.augment.crop),
        codes=CODES,
        channels=CHANNELS,
        classes=CLASSES,
        encoder=replace(run.model, size=size).encoder,
        drop_path=run.model.drop_path,
    )
    return run, TokenClassifier(config).to(device)


def useful_operations(recipe: Recipe) -> float:
    """Floating-point operations of a row's step that no implementation can leave out.

    Matrix products, convolutions and attention, forward and backward, counted on the model itself;
    nothing that is computed twice, no optimizer, no element-wise work.
    """
    meta = torch.device("meta")
    run, model = build(recipe, torch.device("cpu"))
    model.to(meta)
    # The fused kernels' backward computes the scores again; this one keeps them.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model, batch_of(model, _FLOP_ROWS, meta), run.optim.smoothing).backward()
    return counter.get_total_flops() / _FLOP_ROWS


def stages(case: Case) -> dict[str, Callable[[], None]]:
    """The parts of a step, each by itself forward and backward, on inputs of the real shapes."""
    model, batch = case.model, case.batch
    assert isinstance(model, MTM | TokenClassifier)

    def both(make: Callable[[], Tensor]) -> Callable[[], None]:
        def call() -> None:
            with torch.autocast(case.device.type, torch.bfloat16, enabled=case.bf16):
                out = make()
            out.backward(torch.ones_like(out))

        return call

    def like(make: Callable[[], Tensor]) -> Tensor:
        with torch.no_grad(), torch.autocast(case.device.type, torch.bfloat16, enabled=case.bf16):
            return make().detach().requires_grad_()

    def through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x)
        return x

    if isinstance(model, MTM):
        assert batch.masks is not None
        drop, mask = batch.masks
        embedded = like(lambda: model.embed(batch.inputs, drop, mask))
        latent = like(lambda: model.norm(through(model.blocks, embedded)))
        restored = like(lambda: model.restore(latent, drop, mask))

        def head() -> Tensor:
            logits = model.mlm_layer(restored, model.token_emb.word_embeddings.weight.detach())
            return model.loss(logits, batch.inputs, mask)

        return {
            "embedding": both(lambda: model.embed(batch.inputs, drop, mask)),
            "encoder": both(lambda: model.norm(through(model.blocks, embedded))),
            "decoder": both(lambda: model.restore(latent, drop, mask)),
            "head": both(head),
        }
    embedded = like(lambda: model.embed(batch.inputs))
    encoded = like(lambda: through(model.blocks, embedded))
    return {
        "embedding": both(lambda: model.embed(batch.inputs)),
        "encoder": both(lambda: through(model.blocks, embedded)),
        "head": both(
            lambda: soft_cross_entropy(
                model.classify(encoded),
                batch.label,
                batch.label.flip(0),
                batch.mix,
                case.run.optim.smoothing,
            )
        ),
    }


CONTENDERS = ("ours", "plain")


def on_the_cpu(contender: str, size: str, rows: int) -> Case:
    """A float32 case of MTM ("ours"), or of its plain twin with the same weights ("plain")."""
    device = torch.device("cpu")
    run, model = build("mtm-base", device, size)
    if contender == "plain":
        assert isinstance(model, MTM)
        plain = PlainMTM(model.config)
        plain.load_state_dict(model.state_dict())
        model = plain
    return Case(contender, run, model, device, bf16=False, rows=rows)


@dataclass(frozen=True)
class Spent:
    """What a step took: seconds on the clock, and seconds of the processors' time."""

    clock: float
    processor: float


def cpu_seconds(size: str, rows: int, steps: int, threads: int) -> list[tuple[Spent, Spent]]:
    """Our step and the plain one, in pairs: what else runs on the machine meets both alike.

    Raises AssertionError if the two do not compute the same loss.
    """
    torch.set_num_threads(threads)
    cases = [on_the_cpu(contender, size, rows) for contender in CONTENDERS]
    losses = []
    for case in cases:
        case.model.eval()
        with torch.no_grad():
            losses.append(float(case.loss()))
        case.model.train()
        case.step()
    if abs(losses[0] - losses[1]) > _SAME_LOSS:
        raise AssertionError(f"these are two models: their losses are {losses}")
    pairs = []
    for number in range(steps):
        spent = {}
        for at in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter(), time.process_time()
            cases[at].step()
            spent[at] = Spent(time.perf_counter() - began[0], time.process_time() - began[1])
        pairs.append((spent[0], spent[1]))
    return pairs


def cpu_memory(contender: str, size: str, rows: int, threads: int) -> int:
    """Most bytes that this process held during two steps; for a process of its own."""
    torch.set_num_threads(threads)
    case = on_the_cpu(contender, size, rows)
    case.model.train()
    for _ in range(2):
        case.step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
