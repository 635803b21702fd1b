"""DCT datasets on a real Ray: ingest, what stands, and the same batches by every way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.augment.recipe import RECIPES
from services.errors import InvalidInputError
from services.pictures import read_picture
from services.plan.epoch import OrderSpec
from services.shards.cache import ShardCache
from services.shards.coefficient_stats import count_coefficients
from services.shards.coefficients import dense, from_rows
from services.shards.manifest import load_manifest
from services.shards.reader import DatasetReader
from services.shards.store import open_store
from services.shards.verify import verify_dataset
from services.stream.ingest import IngestConfig, ingest
from services.stream.loader import Stream
from services.stream.pool import Pool
from services.stream.request import RowsRequest, StreamRequest
from services.stream.sources import pinned
from services.tokens.dct import DCT, DCTConfig
from services.tokens.tokenizer import load_tokenizer, save_tokenizer
from tests.sources.archived import picture

pytestmark = pytest.mark.system

COUNT = 44


@pytest.fixture(scope="module")
def made(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> IngestConfig:
    """The options of an ingest that has been made."""
    root = tmp_path_factory.mktemp("dct")
    for number in range(COUNT):
        path = root / "in" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, 32))
    config = DCTConfig((32, 32), 8, keep=10, codes=16)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dct = DCT.fit(config, images, torch.Generator().manual_seed(0), rounds=2)
    (root / "dct.safetensors").write_bytes(save_tokenizer(dct))
    done = IngestConfig(
        images=str(root / "in"),
        root=str(root / "data"),
        dataset="dct",
        tokenizer=str(root / "dct.safetensors"),
        rows_per_shard=16,
        batch=8,
        actors=1,
        cpus=0.5,
    )
    ingest(done)
    return done


def test_coefficients_stand_without_loss_beside_their_tokens_and_are_counted(
    made: IngestConfig, tmp_path: Path
) -> None:
    root, dct = open_store(made.root), load_tokenizer(made.tokenizer)
    assert isinstance(dct, DCT)
    manifest = load_manifest(root, "dct").manifest
    for split in manifest.splits:
        reader = DatasetReader(root, "dct", split=split.name, cache=ShardCache(tmp_path, 10**8))
        found = []
        for number, count in enumerate(reader.shard_rows.tolist()):
            shard, inside = np.full(count, number), np.arange(count)
            maps = dense(from_rows([bytes(v) for v in reader.column("dct", shard, inside)]))
            ids, _ = reader.take(shard, inside)
            for key, whole, grid in zip(reader.keys(shard, inside), maps, ids, strict=True):
                pixels = read_picture(Path(made.images) / key, 32, 32)
                wanted = dct.coefficients(torch.from_numpy(pixels).float()[None] / 255)
                assert (wanted[0].numpy() == whole).all()
                assert (dct.codebook.quantise(wanted)[0].numpy() == grid).all()
            found.append(maps)
        assert split.coefficients == count_coefficients(np.concatenate(found))
    assert all(check.failure is None for check in verify_dataset(root, "dct"))


def request(made: IngestConfig, cache: Path, **changes: object) -> StreamRequest:
    root = open_store(made.root)
    rows = RowsRequest(
        sources=(pinned(root, "dct", "train"),),
        order=OrderSpec(seed=1, global_batch_rows=8, block_rows=4, lanes=1, window_shards=2),
        cache_dir=str(cache),
        cache_bytes=10**8,
        coefficients=True,
    )
    recipe = RECIPES["scratch"](load_manifest(root, "dct").spec, (3, 3))
    recipe = replace(recipe, eda=replace(recipe.eda, synonym_probability=0.0))
    return StreamRequest(replace(rows, **changes), recipe)  # type: ignore[arg-type]


def test_the_same_batches_with_ray_without_and_augmented_by_the_trainer(
    made: IngestConfig, tmp_path: Path
) -> None:
    asked = request(made, tmp_path)
    pool = Pool(actors=1, cpus=0.5)
    ways = [
        list(Stream(asked, stop=6)),
        list(Stream(asked, stop=6, pool=pool)),
        list(Stream(asked, stop=6, pool=pool, augment_on="cpu")),
        list(Stream(asked, stop=6, augment_on="cpu")),
    ]
    for batches in zip(*ways, strict=True):
        first = batches[0]
        assert first.inputs.shape == (8, 30, 3, 3)
        assert first.inputs.dtype == torch.bfloat16
        for other in batches[1:]:
            assert torch.equal(other.inputs, first.inputs)
            assert torch.equal(other.mix, first.mix)
            assert torch.equal(other.label_b, first.label_b)


def test_what_does_not_fit_is_refused(made: IngestConfig, tmp_path: Path) -> None:
    asked = request(made, tmp_path)
    recipe = RECIPES["mtm"](load_manifest(open_store(made.root), "dct").spec, (3, 3))
    with pytest.raises(InvalidInputError, match="DCT coefficients are no codes"):
        replace(asked, recipe=recipe)
    with pytest.raises(InvalidInputError, match="masks and coefficients at once"):
        replace(
            asked,
            rows=replace(asked.rows, masks=True),
            recipe=replace(
                asked.recipe,
                **{
                    name: getattr(
                        RECIPES["segment"](
                            load_manifest(open_store(made.root), "dct").spec, (3, 3)
                        ),
                        name,
                    )
                    for name in ("eda", "plain_mix", "adapt")
                },
            ),
        )
    large = DCT(DCTConfig((32, 32), 32, keep=300, codes=4))
    (tmp_path / "large.safetensors").write_bytes(save_tokenizer(large))
    with pytest.raises(InvalidInputError, match="shards store at most 255"):
        ingest(replace(made, dataset="large", tokenizer=str(tmp_path / "large.safetensors")))
