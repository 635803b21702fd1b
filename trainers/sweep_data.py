"""The tokens that a sweep runs on: a dataset that stands, or pictures made into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.errors import SeitError
from services.pictures import write_digits
from trainers.chain import fingerprint, run_steps
from trainers.demo import DATASET, DemoConfig, chain
from trainers.shapes import write_shapes
from trainers.sweep import Data, SweepConfig, open_data
from trainers.textures import write_textures

_PREPARED = ("tokenizer", "ingest", "tokenadapt")
_NO_SIGNS = {
    # What is mirrored or cut in half stays of the same class, which no digit does.
    "adapt.flip_probability": 0.5,
    "adapt.crop.area.0": 0.3,
    "plain_crop.area.0": 0.3,
}


@dataclass(frozen=True)
class _Kind:
    """Pictures that are made here.

    write: into a folder, which it returns. overrides: numbers of the augmentation of token
    classifiers. options: of the programs that make tokens, by the step's name.
    """

    write: Callable[[Path], Path]
    overrides: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)


_KINDS = {
    "digits": _Kind(write_digits),
    "textures": _Kind(write_textures, _NO_SIGNS),
    # Outlines of any tint take more codes than digits to be told apart.
    "shapes": _Kind(
        write_shapes,
        _NO_SIGNS,
        {
            "tokenizer": (
                "--model.codes",
                "256",
                "--loop.epochs",
                "24",
                "--loop.validate-every",
                "8",
            )
        },
    ),
}


def kind_of(name: str) -> str:
    """What a report says of the pictures that an option names: no report names a place."""
    return name if name in _KINDS else "a folder of pictures"


def overrides_of(name: str) -> Mapping[str, float]:
    """Numbers of the augmentation of token classifiers that the kind of pictures asks for."""
    return _KINDS[name].overrides if name in _KINDS else {}


def options_of(name: str) -> Mapping[str, Sequence[str]]:
    """Options that they ask for of the programs that make tokens, by the step's name."""
    return _KINDS[name].options if name in _KINDS else {}


def pictures_of(name: str, out: Path) -> Path:
    """The folder that a sweep's option names; "digits" and its like are written below `out`."""
    return _KINDS[name].write(out / "pictures") if name in _KINDS else Path(name).resolve()


def prepare(config: SweepConfig) -> tuple[Data, Mapping[str, float]]:
    """The sweep's data, and the numbers of the augmentation that its kind of pictures asks for.

    Pictures are made into tokens by the first steps of the demo, in the sweep's folder; what is
    done there already is not done again.

    Raises: SeitError where the pictures or the dataset do not do.
    """
    if not config.pictures:
        return open_data(config.root, config.dataset, config.version, config.tokenadapt), {}
    out = config.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    images = pictures_of(config.pictures, out)
    options = options_of(config.pictures)
    steps = [
        replace(step, command=[*step.command, *options.get(step.name, ())])
        for step in chain(DemoConfig(out=out), images, out)
        if step.name in _PREPARED
    ]
    code, _ = run_steps(steps, out, fingerprint(images))
    if code:
        raise SeitError(
            f"the pictures of {images} were not made into tokens (a step ended with code {code}, as"
            " said above); the same command goes on from there"
        )
    adapt = out / "tokenadapt" / "tokenadapt.safetensors"
    return open_data(str(out / "data"), DATASET, None, str(adapt)), overrides_of(config.pictures)
