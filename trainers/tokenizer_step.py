"""What a step of the tokenizer's training computes (Yu et al., 2022, section 3; equation 1)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from services.plan.draws import Draws, hash_key
from services.shards.store import open_store
from services.stream.batch import StreamBatch
from services.tokens.codebook import count_codes, perplexity, revive_codes, token_spec
from services.tokens.tokenizer import save_tokenizer
from services.tokens.vitvqgan import TokenizerOutput, ViTVQGAN, psnr
from trainers.context import Place
from trainers.loop import train
from trainers.picture_config import TokenizerRun
from trainers.picture_streams import open_pictures
from trainers.ranks import gather, sum_over_ranks
from trainers.task import PlainTask
from trainers.views import draw_views, unit_range

logger = logging.getLogger(__name__)

TOKENIZER = "tokenizer.safetensors"
"""File of a finished run: the tokenizer as `load_tokenizer` reads it."""
REPORT = "report.json"
"""File of a finished run: its last figures."""

_MOST_DB = 100.0  # a picture that is reproduced exactly has no finite ratio


def tokenizer_worker(config: TokenizerRun, place: Place) -> dict[str, float]:
    """One worker of a tokenizer's run."""
    model = config.model.vitvqgan()
    spec = token_spec(model.grid, model.codes, model.channels, model.image_size)
    return train(config, open_pictures(config, place, spec), TokenizerTask(config))


class Trainee(nn.Module):
    """The tokenizer, and how often each code was chosen since codes were last revived."""

    use: Tensor

    def __init__(self, tokenizer: ViTVQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.register_buffer("use", torch.zeros(tokenizer.config.codes, dtype=torch.int64))

    def forward(self, images_NCHW: Tensor) -> TokenizerOutput:
        """As `ViTVQGAN.forward`."""
        out: TokenizerOutput = self.tokenizer(images_NCHW)
        return out


class TokenizerTask(PlainTask):
    """Reconstruct pictures through a codebook, and keep all of the codebook in use.

    Codes are compared on the unit sphere, so they are put back onto it after each update: every
    code then moves at the same pace, those just revived as well, and operations on embeddings
    (crops, Mixup, ColorAdapt) meet vectors of one length.
    """

    name = "tokenizer"
    figures = ("loss", "psnr_db")
    best = "psnr_db"
    higher = True

    def __init__(self, config: TokenizerRun) -> None:
        self._config = config
        self._seen: list[TokenizerOutput] = []
        self._chosen = torch.zeros(config.model.codes, dtype=torch.int64)

    def build_model(self, *, fresh: bool) -> Trainee:
        """Starts from nothing; the first step's pictures give the codes their places."""
        return Trainee(ViTVQGAN(self._config.model.vitvqgan()))

    def check(self, batch: StreamBatch) -> None:
        """Any picture can be learned from; streams leave out what is none."""

    def loss(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        images, rows = _existing(batch)
        images = self._moved(images, batch.epoch, rows)
        out: TokenizerOutput = model(images)
        if (batch.rows >= 0).any():
            self._seen.append(out._replace(latents=out.latents.float()))
        return self._loss(out, images) * batch.weight.sum()

    def updated(self, model: nn.Module, step: int, total: int, world: int) -> None:
        assert isinstance(model, Trainee)
        config, weight = self._config.model, model.tokenizer.quantizer.embedding.weight.data
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
            revived = revive_codes(weight, model.use, candidates, generator)
            logger.debug("step %d: %d of %d codes revived", step, revived, config.codes)
            model.use.zero_()
        weight.copy_(F.normalize(weight, dim=1))

    def evaluate(self, model: nn.Module, batch: StreamBatch) -> Tensor:
        assert isinstance(model, Trainee)
        self._chosen = self._chosen.to(batch.weight.device)
        if not (batch.rows >= 0).any():
            return batch.weight.new_zeros(len(self.figures))
        images, _ = _existing(batch)
        out = model(images)
        quality = psnr(model.tokenizer.decode(out.ids).float(), images).clamp(max=_MOST_DB)
        self._chosen += count_codes(out.ids, self._config.model.codes)
        return torch.stack([self._loss(out, images) * len(images), quality.sum()])

    def validated(self, world: int) -> Mapping[str, float]:
        """Share of the codes that the validation split uses, and the perplexity of their use."""
        chosen = sum_over_ranks(self._chosen, world)
        self._chosen = torch.zeros_like(chosen)
        share = float((chosen > 0).double().mean())
        return {"code_use": share, "perplexity": perplexity(chosen)}

    def export(self, model: nn.Module, out: str, figures: Mapping[str, float]) -> None:
        assert isinstance(model, Trainee)
        weight = model.tokenizer.quantizer.embedding.weight.data
        weight.copy_(F.normalize(weight, dim=1))  # an average of codes is shorter than they are
        store = open_store(out)
        store.write(TOKENIZER, save_tokenizer(model.tokenizer))
        store.write(REPORT, json.dumps(dict(figures), indent=2).encode())

    def _loss(self, out: TokenizerOutput, images: Tensor) -> Tensor:
        """() float32: mean over the pictures."""
        config, made = self._config.model, out.reconstruction.float()
        pixels = F.mse_loss(made, images) + config.l1 * F.l1_loss(made, images)
        codes = out.codebook_loss + config.commitment * out.commitment_loss
        return pixels + config.codebook * codes

    def _moved(self, images_NCHW: Tensor, epoch: int, rows: np.ndarray) -> Tensor:
        """Pictures moved about, so that the tokens of augmented pictures are good tokens too."""
        size = self._config.model.image_size
        draws = Draws(self._config.loop.seed, epoch, rows)
        with torch.autocast(images_NCHW.device.type, enabled=False):
            views = draw_views(
                self._config.views, draws, (size, size), self._config.order.block
            ).to(images_NCHW.device)
            return views.apply(images_NCHW, (size, size)).clamp(0, 1)


def _existing(batch: StreamBatch) -> tuple[Tensor, np.ndarray]:
    """Pictures in [0, 1] of the rows that exist, and these; one black picture where none does."""
    there = np.flatnonzero(batch.rows >= 0)
    there = there if len(there) else np.zeros(1, np.int64)
    images = batch.inputs
    if len(there) < len(batch):
        images = images[torch.from_numpy(there).to(images.device)]
    return unit_range(images), batch.rows[there]


def _candidates(latents_MD: Tensor, most: int, generator: torch.Generator, world: int) -> Tensor:
    """Up to `most` of all ranks' latents, drawn without repetition; the same on every rank."""
    count = torch.tensor(len(latents_MD))
    counts = gather(count, latents_MD.device, world)  # (world,)
    picked = torch.randperm(int(counts.sum()), generator=generator)[:most]
    begin = int(counts[: torch.distributed.get_rank()].sum()) if world > 1 else 0
    mine = (picked >= begin) & (picked < begin + len(latents_MD))
    found = latents_MD.new_zeros(len(picked), latents_MD.shape[1])
    device = latents_MD.device
    found[mine.to(device)] = latents_MD[(picked[mine] - begin).to(device)]
    return sum_over_ranks(found, world)
