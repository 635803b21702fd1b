"""The tokens that a sweep runs on: a dataset that stands, or pictures made into one."""

from __future__ import annotations

from pathlib import Path

from services.errors import SeitError
from services.pictures import write_digits
from trainers.chain import fingerprint, run_steps
from trainers.demo import DATASET, DemoConfig, chain
from trainers.sweep import Data, SweepConfig, open_data
from trainers.textures import write_textures

_PREPARED = ("tokenizer", "ingest", "tokenadapt")
TEXTURE_OVERRIDES = {
    # What is mirrored or cut in half stays the same texture, which no digit does.
    "adapt.flip_probability": 0.5,
    "adapt.crop.area.0": 0.3,
    "plain_crop.area.0": 0.3,
}
"""Of the augmentation of token classifiers, for pictures that are no signs."""


def pictures_of(name: str, out: Path) -> Path:
    """The folder that a sweep's option names; "digits" and "textures" are written below `out`."""
    if name == "digits":
        return write_digits(out / "pictures")
    if name == "textures":
        return write_textures(out / "pictures")
    return Path(name).resolve()


def prepare(config: SweepConfig) -> tuple[Data, dict[str, float]]:
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
    steps = [s for s in chain(DemoConfig(out=out), images, out) if s.name in _PREPARED]
    code, _ = run_steps(steps, out, fingerprint(images))
    if code:
        raise SeitError(
            f"the pictures of {images} were not made into tokens (a step ended with code {code}, as"
            " said above); the same command goes on from there"
        )
    adapt = out / "tokenadapt" / "tokenadapt.safetensors"
    overrides = TEXTURE_OVERRIDES if config.pictures == "textures" else {}
    return open_data(str(out / "data"), DATASET, None, str(adapt)), overrides
