"""A segmentation run; see `config.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainers.config import TokenRun, ViTConfig, check_patch
from trainers.data_config import check_share, require


@dataclass(frozen=True)
class SegmenterModelConfig(ViTConfig):
    """The encoder, UperNet, and what the encoder starts from."""

    init: str = ""
    """MTM model, classifier or segmenter to start from: folder of a finished run, a .safetensors
    file, or a checkpoint of the published code (.pth); empty for none."""
    input: Literal["ids", "embeddings"] = "ids"
    """What the encoder reads: ids, as a model from MTM, or embeddings, as one from scratch."""
    decoder_width: int = 512
    """Channels of UperNet's decoder."""
    auxiliary_width: int = 256
    """Channels of the plain head that helps training."""
    auxiliary_weight: float = 0.4
    """Weight of its loss beside UperNet's; at 0 it learns nothing."""
    drop_path: float = 0.1
    """Share of residual branches dropped in the last block; grows linearly from 0 in the first."""
    dropout: float = 0.0
    """Share of activations dropped after the embedding of ids."""
    head_dropout: float = 0.1
    """Share of channels dropped before the last layer of each head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("drop_path", "dropout", "head_dropout"):
            check_share(f"model.{name}", getattr(self, name))
        for name in ("decoder_width", "auxiliary_width"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "at least 1")
        weight = self.auxiliary_weight
        require(weight >= 0, "model.auxiliary_weight", weight, "at least 0")


@dataclass(frozen=True)
class SegmentRun(TokenRun):
    """Training a segmentation model on tokens and masks."""

    model: SegmenterModelConfig
    pictures: int = 8
    """Pictures of the validation split that are drawn at the end, with truth and prediction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patch(self.augment, self.model)
        require(self.pictures >= 0, "pictures", self.pictures, "at least 0")
        require(
            self.optim.smoothing == 0,
            "optim.smoothing",
            self.optim.smoothing,
            "0: pixels have one class each",
        )

    @property
    def may_differ(self) -> tuple[str, ...]:
        return (*super().may_differ, "pictures")  # drawn at the end: they change nothing trained

    @property
    def reads_masks(self) -> bool:
        return True

    @property
    def output(self) -> Literal["ids", "embeddings"]:
        return self.model.input
