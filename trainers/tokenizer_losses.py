"""The two terms that make reconstructions sharp: perceptual and adversarial.

Both are optional parts of a tokenizer's training (Yu et al., "Vector-quantized image modeling with
improved VQGAN", equation 1; Esser et al., "Taming transformers", equations 4 to 7). Nothing is
downloaded: the perceptual network's weights are a file that the user names.

Shape letters: N rows, H and W pixels, F feature channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from services.errors import FormatError, InvalidInputError
from services.tokens.weights import read_safetensors, read_torch, state_dict_of

# VGG-16 up to relu5_3: the index of each convolution in torchvision's `features`, by stage.
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
_WIDTHS = (64, 128, 256, 512, 512)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the pictures that VGG learned from
_LEAST_SIDE = 16  # pixels: four halvings leave one
_FLOOR = 1e-10
_MOST_WEIGHT = 1e4


class Perceptual(nn.Module):
    """LPIPS distance of two pictures (Zhang et al., 2018, equation 1), frozen.

    Features of the five stages of a VGG-16, each position's of unit length, are subtracted and
    squared, weighted by channel, and averaged over positions; the stages add up. Without LPIPS's
    learned channel weights in the file, each channel counts 1/F.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = (3, *_WIDTHS)
        self.features = nn.ModuleDict()
        for stage, (into, out) in zip(_STAGES, pairwise(widths), strict=True):
            for place, index in enumerate(stage):
                conv = nn.Conv2d(out if place else into, out, 3, padding=1)
                self.features[str(index)] = conv
        self.lin = nn.ParameterList(torch.full((1, width, 1, 1), 1 / width) for width in _WIDTHS)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, images_N3HW: Tensor, others_N3HW: Tensor) -> Tensor:
        """(N,) float32, 0 for equal pictures. Pictures in [0, 1], of 16 pixels a side at least."""
        found = images_N3HW.new_zeros(len(images_N3HW), dtype=torch.float32)
        both = (torch.cat([images_N3HW, others_N3HW]) - self.mean) / self.std
        for number, (stage, lin) in enumerate(zip(_STAGES, self.lin, strict=True)):
            if number:
                both = F.max_pool2d(both, 2)
            for index in stage:
                both = F.relu(self.features[str(index)](both))
            length = both.float().square().sum(1, keepdim=True).add(_FLOOR).sqrt()
            one, other = (both.float() / length).chunk(2)
            found = found + ((one - other).square() * lin).sum(1).mean((1, 2))
        return found


def load_perceptual(path: str) -> Perceptual:
    """Read VGG-16's weights, and LPIPS's channel weights where the file has them.

    A state dict (`torch.save` or safetensors) with torchvision's names (`features.0.weight`) or
    those of the lpips package (`net.slice1.0.weight`, `lin0.model.1.weight`); the classifier in it
    is passed over. Only tensors are read.

    Raises: NotFoundError; FormatError for a file that is none, or of another network.
    """
    if Path(path).suffix == ".safetensors":
        state, _ = read_safetensors(path)
    else:
        state = state_dict_of(read_torch(path), path)
    model = Perceptual()
    found = _renamed(state)
    wanted = model.state_dict()
    convs = [name for name in wanted if name.startswith("features.")]
    lins = [name for name in wanted if name.startswith("lin.")]
    some = [name for name in lins if name in found]
    missing = [name for name in convs + (lins if some else []) if name not in found]
    if missing:
        raise FormatError(
            f"{path} lacks {missing[0]} (and {len(missing) - 1} more) of VGG-16: nothing was"
            " loaded; give torchvision's vgg16 weights, or those of the lpips package with"
            " net=vgg, as a state dict"
        )
    for name in convs + some:
        if found[name].shape != wanted[name].shape:
            raise FormatError(
                f"{path}: {name} is {tuple(found[name].shape)}, VGG-16 has"
                f" {tuple(wanted[name].shape)}: nothing was loaded"
            )
    model.load_state_dict({name: found[name] for name in convs + some}, strict=False)
    return model.eval()


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `Perceptual`; others are left out."""
    found = {}
    for name, value in state.items():
        if match := re.fullmatch(r"(?:.*\.)?(?:features|net\.slice\d)\.(\d+)\.(weight|bias)", name):
            found[f"features.{match[1]}.{match[2]}"] = value
        elif match := re.fullmatch(r"(?:.*\.)?lins?\.?(\d)\.(?:model\.)?1\.weight", name):
            found[f"lin.{match[1]}"] = value
    return found


class Discriminator(nn.Module):
    """Scores of overlapping patches of a picture: high for real ones (PatchGAN, Isola et al.).

    (N, 3, H, W) in [0, 1] -> (N, 1, h, w). Normalised by groups within a picture, where the
    published one has batch normalisation: a row's score then depends on no other row, so neither
    does a step on how its rows are shared out among workers.
    """

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        for level, (into, out) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < depth else 1
            layers += [
                nn.Conv2d(into, out, 4, stride, 1, bias=False),
                nn.GroupNorm(min(8, out), out),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)

    def forward(self, images_N3HW: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, h, w)."""
        out: Tensor = self.layers(images_N3HW * 2 - 1)
        return out

    def frozen(self, images_N3HW: Tensor) -> Tensor:
        """The same scores, with gradients for the pictures and none for the weights."""
        weights = {name: value.detach() for name, value in self.named_parameters()}
        out: Tensor = functional_call(self, weights, (images_N3HW,))
        return out


def least_side(depth: int) -> int:
    """Pixels that a picture's side must have for a discriminator of that depth."""
    return 4 << depth


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """() float32: the discriminator's loss, from its scores of real and of made pictures."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + made.float()).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """() by how much the adversarial term must be multiplied to pull as hard (Esser et al., eq. 7).

    Both: gradients of the terms with respect to the decoder's last weights, summed over all rows.
    """
    ratio: Tensor = reconstruction.norm() / (adversarial.norm() + 1e-4)
    return ratio.clamp(0, _MOST_WEIGHT).detach()


def check_sides(image_size: int, *, perceptual: bool, depth: int | None) -> None:
    """InvalidInputError for pictures that are too small for the terms; depth: None for no GAN."""
    least = max(_LEAST_SIDE if perceptual else 1, least_side(depth) if depth is not None else 1)
    if image_size < least:
        raise InvalidInputError(
            f"model.image_size is {image_size}, but the terms of the loss need {least} pixels:"
            " leave out model.perceptual, or take a smaller model.discriminator_depth"
        )
