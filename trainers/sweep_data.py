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
class Kind:
    """Pictures that an option of a sweep or study names.

    title: for reports, which name no place. write: into a folder, which it returns. overrides:
    numbers of the augmentation of token classifiers that they ask for. tokenizer: options of its
    training.
    """

    title: str
    write: Callable[[Path], Path]
    overrides: Mapping[str, float] = field(default_factory=dict)
    tokenizer: Sequence[str] = ()


_MADE_HERE = (
    Kind("digits", write_digits),
    Kind("textures", write_textures, _NO_SIGNS),
    # Outlines of any tint take more codes than digits to be told apart.
    Kind(
        "shapes",
        write_shapes,
        _NO_SIGNS,
        ["--model.codes", "256", "--loop.epochs", "24", "--loop.validate-every", "8"],
    ),
)


def kind_of(name: str) -> Kind:
    """The kind that is made here under that name, or else the folder of that name as it stands."""
    made = {kind.title: kind for kind in _MADE_HERE}
    return made.get(name) or Kind("a folder of pictures", lambda _: Path(name).resolve())


def pictures_of(name: str, out: Path) -> Path:
    """The folder of the pictures that an option names; what is made here lies below `out`."""
    return kind_of(name).write(out / "pictures")


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
    kind = kind_of(config.pictures)
    steps = [
        replace(step, command=[*step.command, *kind.tokenizer])
        if step.name == "tokenizer"
        else step
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
    return open_data(str(out / "data"), DATASET, None, str(adapt)), kind.overrides
