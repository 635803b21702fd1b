"""What a step of a tokenizer's training computes: ViT-VQGAN's (Yu et al., 2022, section 3;
equation 1), and VQGAN's (Esser et al., 2021, equations 4 to 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from services.plan.draws import Draws, hash_key
from services.shards.store import open_store
from services.stream.batch import StreamBatch
from services.tokens.codebook import count_codes, perplexity, revive_codes, token_spec
from services.tokens.devices import on_device
from services.tokens.tokenizer import save_tokenizer
from services.tokens.vitvqgan import TokenizerOutput, ViTVQGAN, psnr
from services.tokens.vqgan import VQGAN
from trainers.context import Place
from trainers.loop import train
from trainers.picture_streams import check_pictures, open_pictures
from trainers.ranks import gather, sum_over_ranks
from trainers.reports import strict_json
from trainers.task import PlainTask
from trainers.tokenizer_config import CodesRun
from trainers.tokenizer_losses import (
    Discriminator,
    adaptive_weight,
    hinge_loss,
    load_perceptual,
)
from trainers.views import draw_views, unit_range

TOKENIZER = "tokenizer.safetensors"
"""File of a finished run: the tokenizer as `load_tokenizer` reads it."""
REPORT = "report.json"
"""File of a finished run: its last figures."""

C = TypeVar("C", bound=CodesRun)

_MOST_DB = 100.0  # a picture that is reproduced exactly has no finite ratio


def tokenizer_worker(config: CodesRun, place: Place) -> dict[str, float]:
    """One worker of a tokenizer's run."""
    model = config.model.network()
    spec = token_spec(model.grid, model.codes, model.channels, model.image_size)
    task = TokenizerTask(config, place.device, place.world)
    return train(config, open_pictures(config, place, spec), task)


class Scores(NamedTuple):
    """What the discriminator says: (N, 1, h, w) each.

    real: of the pictures. made: of their reconstructions, with gradients for the discriminator;
    fooled: the same scores, with gradients for the tokenizer.
    """

    real: Tensor
    made: Tensor
    fooled: Tensor


class Trainee(nn.Module):
    """The tokenizer, its discriminator if any, and how often each code was chosen since codes were
    last revived."""

    use: Tensor

    def __init__(
        self, tokenizer: ViTVQGAN | VQGAN, discriminator: Discriminator | None = None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.discriminator = discriminator
        self.register_buffer("use", torch.zeros(tokenizer.config.codes, dtype=torch.int64))

    def forward(self, images_NCHW: Tensor) -> tuple[TokenizerOutput, Scores | None]:
        """As the tokenizer's `forward`, and what the discriminator says of it."""
        out: TokenizerOutput = self.tokenizer(images_NCHW)
        if self.discriminator is None:
            return out, None
        scores = Scores(
            real=self.discriminator(images_NCHW),
            made=self.discriminator(out.reconstruction.detach()),
            fooled=self.discriminator.frozen(out.reconstruction),
        )
        return out, scores


def prepare_tokenizer(run: C) -> C:
    """As `check_pictures`; refuses weights for LPIPS that cannot be read."""
    checked = check_pictures(run)
    TokenizerTask(checked, torch.device("cpu"))
    return checked


class TokenizerTask(PlainTask):
    """Reconstruct pictures through a codebook, and keep all of the codebook in use.

    ViT-VQGAN compares codes on the unit sphere, so they are put back onto it after each update:
    every code then moves at the same pace, those just revived as well, and operations on embeddings
    (crops, Mixup, ColorAdapt) meet vectors of one length. VQGAN compares them where they are.
    """

    name = "tokenizer"
    best = "psnr_db"
    higher = True

    def __init__(self, config: CodesRun, device: torch.device, world: int = 1) -> None:
        self._config, self._world, model = config, world, config.model
        self._perceptual = None
        if model.perceptual:
            self._perceptual = load_perceptual(model.perceptual_weights).to(device)
        self.figures = (
            *("loss", "psnr_db"),
            *(("perceptual",) if model.perceptual else ()),
            *(("real_score", "made_score") if model.adversarial else ()),
        )
        self._seen: list[TokenizerOutput] = []
        self._chosen = torch.zeros(config.model.codes, dtype=torch.int64)

    def build_model(self, *, fresh: bool) -> Trainee:
        """Starts from nothing; the first step's pictures give the codes their places."""
        model = self._config.model
        tokenizer = model.build()
        if not model.adversarial:
            return Trainee(tokenizer)
        return Trainee(
            tokenizer, Discriminator(model.discriminator_width, model.discriminator_depth)
        )

    def check(self, batch: StreamBatch) -> None:
        """Any picture can be learned from; streams leave out what is none."""

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        # Moved before those that do not exist are left out, which would shift the blocks.
        images = _existing(batch, self._moved(batch))
        out: TokenizerOutput
        scores: Scores | None
        out, scores = model(images)
        if (batch.rows >= 0).any():
            self._seen.append(out._replace(latents=out.latents.float()))
        count = batch.weight.sum()
        made = self._reconstruction(out, images).mean()
        loss = made + self._codes(out)
        if scores is not None:
            heard = float(batch.step >= self._config.model.adversarial_from)
            fooled = -scores.fooled.float().mean()
            pull = self._pull(model, made * count, fooled * count)
            # Times 0 before its time, so that all weights have a gradient on every rank.
            loss = loss + heard * (
                self._config.model.adversarial * pull * fooled
                + hinge_loss(scores.real, scores.made)
            )
        return loss * count

    def updated(self, model: nn.Module, step: int, total: int, world: int) -> None:
        assert isinstance(model, Trainee)
        config, weight = self._config.model, model.tokenizer.code_vectors.data
        ids = [out.ids.flatten() for out in self._seen]
        latents = [out.latents for out in self._seen]
        self._seen.clear()
        chosen = torch.cat(ids) if ids else model.use.new_empty(0)
        model.use += sum_over_ranks(count_codes(chosen, config.codes), world)
        first = step == 0
        if first:
            model.use.zero_()  # codes that stand where no picture is were chosen by chance alone
        if first or ((step + 1) % config.revive_every == 0 and step < config.revive_until * total):
            # All ranks come to the same codes: candidates are of all ranks, the draws of the step.
            generator = torch.Generator().manual_seed(
                hash_key("revive", self._config.loop.seed, step) >> 1
            )
            mine = torch.cat(latents) if latents else weight.new_empty(0, config.channels)
            candidates = _candidates(mine, config.codes, generator, world)
            revive_codes(weight, model.use, candidates, generator)
            model.use.zero_()
        _place_codes(model.tokenizer)

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        assert isinstance(model, Trainee)
        self._chosen = on_device(self._chosen, batch.weight.device)
        if not (batch.rows >= 0).any():
            return batch.weight.new_zeros(len(self.figures))
        images = _existing(batch, unit_range(batch.inputs))
        out, scores = model(images)
        shown = model.tokenizer.decode(out.ids).float()
        self._chosen += count_codes(out.ids, self._config.model.codes)
        made = self._reconstruction(out, images)
        found = [
            made.sum() + self._codes(out) * len(images),
            psnr(shown, images).clamp(max=_MOST_DB).sum(),
        ]
        if self._perceptual is not None:
            found.append(self._perceptual(shown, images).sum())
        if scores is not None:
            found += [score.float().mean() * len(images) for score in (scores.real, scores.made)]
        return torch.stack(found)

    def validated(self, world: int) -> Mapping[str, float]:
        """Share of the codes that the validation split uses, and the perplexity of their use."""
        chosen = sum_over_ranks(self._chosen, world)
        self._chosen = torch.zeros_like(chosen)
        share = float((chosen > 0).double().mean())
        return {"code_use": share, "perplexity": perplexity(chosen)}

    def export(self, model: nn.Module, out: str, figures: Mapping[str, float]) -> None:
        assert isinstance(model, Trainee)
        _place_codes(model.tokenizer)  # an average of codes is shorter than they are
        store = open_store(out)
        store.write(TOKENIZER, save_tokenizer(model.tokenizer))
        store.write(REPORT, strict_json(figures, indent=2).encode())

    def _reconstruction(self, out: TokenizerOutput, images: Tensor) -> Tensor:
        """(N,) float32: how far each reconstruction is from its picture."""
        config, made = self._config.model, out.reconstruction.float()
        error = made - images
        loss = (error.square() + config.l1 * error.abs()).flatten(1).mean(1)
        if self._perceptual is not None:
            loss = loss + config.perceptual * self._perceptual(made, images)
        return loss

    def _codes(self, out: TokenizerOutput) -> Tensor:
        """() float32: the terms that bring codes and the encoder's outputs together."""
        config = self._config.model
        return config.codebook * (out.codebook_loss + config.commitment * out.commitment_loss)

    def _pull(self, model: nn.Module, made: Tensor, fooled: Tensor) -> Tensor:
        """() weight at which the adversarial term pulls the decoder's last layer as hard as the
        reconstruction does, both as sums over the rows of all ranks: the same on every rank.

        Of this part's rows alone: the whole step's would need each part to be computed twice.
        """
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        assert isinstance(inner, Trainee)
        last = inner.tokenizer.decoder.last_weight
        grads = [
            sum_over_ranks(torch.autograd.grad(term, last, retain_graph=True)[0], self._world)
            for term in (made, fooled)
        ]
        return adaptive_weight(*grads)

    def _moved(self, batch: StreamBatch) -> Tensor:
        """Pictures moved about, so that the tokens of augmented pictures are good tokens too."""
        size, device = self._config.model.image_size, batch.inputs.device
        draws = Draws(self._config.loop.seed, batch.epoch, batch.rows)
        with torch.autocast(device.type, enabled=False):
            views = draw_views(
                self._config.views, draws, (size, size), self._config.order.block
            ).to(device)
            return views.apply(unit_range(batch.inputs), (size, size)).clamp(0, 1)


def _place_codes(tokenizer: ViTVQGAN | VQGAN) -> None:
    """Put codes back to where they are compared."""
    weight = tokenizer.code_vectors.data
    if tokenizer.codebook.metric == "cosine":
        weight.copy_(F.normalize(weight, dim=1))


def _existing(batch: StreamBatch, images: Tensor) -> Tensor:
    """Those of the batch's pictures whose rows exist; one black picture where none does."""
    there = np.flatnonzero(batch.rows >= 0)
    there = there if len(there) else np.zeros(1, np.int64)
    if len(there) < len(batch):
        images = images[on_device(torch.from_numpy(there), images.device)]
    return images


def _candidates(latents_MD: Tensor, most: int, generator: torch.Generator, world: int) -> Tensor:
    """Up to `most` of all ranks' latents, drawn without repetition; the same on every rank.

    One rank alone waits for nothing; of several, each waits to know how many latents others have.
    """
    device, own = latents_MD.device, len(latents_MD)
    if world == 1:
        return latents_MD[on_device(torch.randperm(own, generator=generator)[:most], device)]
    counts = gather(torch.tensor(own), device, world)  # (world,)
    picked = torch.randperm(int(counts.sum()), generator=generator)[:most]
    begin = int(counts[: torch.distributed.get_rank()].sum())
    mine = torch.nonzero((picked >= begin) & (picked < begin + own)).flatten()
    found = latents_MD.new_zeros(len(picked), latents_MD.shape[1])
    found[on_device(mine, device)] = latents_MD[on_device(picked[mine] - begin, device)]
    return sum_over_ranks(found, world)
