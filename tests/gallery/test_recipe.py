"""`seit gallery` on a real dataset with a real tokenizer: what is drawn, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from services.augment.tokenadapt import TokenAdapt, TokenAdaptConfig, codebook_digest
from services.gallery import recipe as gallery
from services.gallery.recipe import GalleryRequest
from services.gallery.sheet import Columns, draw_sheet
from services.shards.manifest import commit, load_manifest, put_asset
from services.shards.store import open_store
from services.shards.writer import build_split, write_shard
from services.tokens.tokenizer import save_tokenizer
from services.tokens.vitvqgan import ViTSize, ViTVQGAN, ViTVQGANConfig
from services.types import TokenRows
from services.wire.seit import v1 as wire
from tests.seit_command import run_seit

SIZE = ViTSize(dim=8, depth=1, heads=1, mlp=8)
CODES, GRID, ROWS = 20, 6, 9


@pytest.fixture(scope="module")
def tokenizer() -> ViTVQGAN:
    torch.manual_seed(1)
    config = ViTVQGANConfig((24, 24), 4, SIZE, SIZE, codes=CODES, channels=4, dim_head=8)
    return ViTVQGAN(config).eval()


@pytest.fixture(scope="module")
def root(tokenizer: ViTVQGAN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    store = open_store(str(folder))
    ids = np.random.default_rng(0).integers(0, CODES, (ROWS, GRID, GRID)).astype(np.uint16)
    results = []
    for start in range(0, ROWS, 4):
        part = ids[start : start + 4]
        rows = TokenRows(
            part, np.arange(len(part)), [str(n) for n in range(len(part))],
            np.zeros(len(part), np.int64),
        )  # fmt: skip
        results.append(write_shard(store, "small", "train", rows, tokenizer.spec))
    for name, assets in (
        ("small", {"tokenizer": save_tokenizer(tokenizer)}),
        ("bare", {}),
    ):
        if name == "bare":
            results = [write_shard(store, name, "train", rows, tokenizer.spec)]
        assets |= {"codebook": tokenizer.codebook.to_bytes()}
        commit(
            store,
            wire.Manifest(
                dataset=name,
                spec=tokenizer.spec,
                tokenizer_kind="vitvqgan",
                assets=[put_asset(store, name, kind, data) for kind, data in assets.items()],
                classes=["a", "b", "c", "d"],
                splits=[build_split(store, name, "train", results, CODES)],
            ),
        )
    np.save(folder / "ids.npy", ids)
    return folder


@pytest.fixture(scope="module")
def tokenadapt(root: Path, tokenizer: ViTVQGAN) -> Path:
    config = TokenAdaptConfig(
        (GRID, GRID), (4, 4), 4, CODES, dim=8, heads=1, mlp=8, dim_head=8, scale=2
    )
    path = root / "tokenadapt.safetensors"
    path.write_bytes(TokenAdapt(config, codebook_digest(tokenizer.codebook.weight)).to_bytes())
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEIT_CACHE_DIR", str(tmp_path / "cache"))


def drawn(monkeypatch: pytest.MonkeyPatch, request: GalleryRequest, path: Path) -> Columns:
    """The columns that go onto the sheet; it is drawn as well."""
    kept: list[Columns] = []

    def keep(columns: Columns, where: Path, names: list[str]) -> Path:
        kept.append(columns)
        return draw_sheet(columns, where, names)

    monkeypatch.setattr(gallery, "draw_sheet", keep)
    gallery.draw_recipe(request, path)
    return kept[0]


def test_columns_are_the_decoded_rows_before_and_after(
    root: Path,
    tokenizer: ViTVQGAN,
    tokenadapt: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = [7, 0, 4]
    request = GalleryRequest(
        str(root), "small", "scratch", crop=4, tokenadapt=str(tokenadapt), rows=wanted
    )
    columns = drawn(monkeypatch, request, tmp_path / "sheet.png")
    ids = torch.from_numpy(np.load(root / "ids.npy")[wanted].astype(np.int64))
    by_title: dict[str, Tensor] = dict(columns)
    torch.testing.assert_close(by_title["stored"], tokenizer.decode(ids))
    # The swap exchanges tokens: each stands somewhere. CutMix keeps what it does not cut.
    assert by_title["swap"].shape == by_title["stored"].shape
    assert by_title["RRC\non codes"].shape == (3, 3, 16, 16)
    assert {"ColorAdapt", "TokenAdapt\nflip", "scratch\ndraw 3"} <= set(by_title)
    again = dict(drawn(monkeypatch, request, tmp_path / "again.png"))
    assert all(torch.equal(by_title[title], again[title]) for title in by_title)
    other = dict(drawn(monkeypatch, replace(request, seed=1), tmp_path / "other.png"))
    assert not torch.equal(by_title["Emb-Noise"], other["Emb-Noise"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 100 * len(columns)
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 20


def test_the_command_draws_and_says_what(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "deep" / "g.png"
    ended = run_seit(
        capsys, "gallery", str(root), "small", "--recipe", "finetune", "-o", str(sheet)
    )
    assert ended.code == 0
    assert "recipe finetune: 6x6 ids" in ended.out
    assert "CutMix" in ended.out
    assert str(sheet) in ended.out
    assert "TokenAdapt" not in ended.out, "no weights were given, so its path is left out"
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_a_recipe_of_ones_own(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"plain_crop": {"kind": "random"}, "eda": {"swap_probability": 1}}))
    sheet = tmp_path / "g.png"
    ended = run_seit(
        capsys,
        "gallery",
        str(root),
        "small",
        "--recipe",
        str(file),
        "--crop",
        "3",
        "-o",
        str(sheet),
    )
    assert ended.code == 0
    assert "recipe mine: 3x3 ids" in ended.out
    assert "random crop" in ended.out


def test_tokenadapt_takes_the_crop_that_a_recipe_names(
    root: Path, tokenadapt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"crop": [4, 4], "adapt": {"share": 0.5}}))
    named = GalleryRequest(str(root), "small", str(file), tokenadapt=str(tokenadapt), rows=[1, 5])
    found = dict(drawn(monkeypatch, named, tmp_path / "named.png"))
    file.write_text(json.dumps({"adapt": {"share": 0.5}}))
    given = dict(drawn(monkeypatch, replace(named, crop=4), tmp_path / "given.png"))
    assert found.keys() == given.keys()
    assert all(torch.equal(found[title], given[title]) for title in found)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["small", "--recipe", "mtn"], "expected one of mtm"),
        (["small", "--recipe", "none.json"], "no recipe file"),
        (["small", "--crop", "7"], "does not fit"),
        (["small", "--rows", "2", "9"], "rows 0 to 8"),
        (["small", "--rows=-1"], "rows 0 to 8"),
        (["small", "--rows", "2", "abc"], "rows holds 'abc', expected numbers of samples"),
        (["small", "--count", "0"], "1 to 64"),
        (["small", "--split", "test"], "no split"),
        (["smalls"], "no dataset"),
        (["bare"], "--tokenizer"),
        (["small", "--tokenadapt", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    sheet = tmp_path / "g.png"
    ended = run_seit(capsys, "gallery", str(root), *options, "-o", str(sheet))
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
    assert list(tmp_path.glob("*.png*")) == []


@pytest.mark.parametrize("out", ["", ".", "/"])
def test_a_folder_is_no_picture_to_write(
    root: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    ended = run_seit(capsys, "gallery", str(root), "small", "-o", out)
    assert (ended.code, ended.out) == (2, "")
    assert "a folder: nothing was drawn" in " ".join(ended.err.split())


def test_a_tokenizer_of_other_codes_is_refused(
    root: Path, tokenizer: ViTVQGAN, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(2)
    (tmp_path / "other.safetensors").write_bytes(save_tokenizer(ViTVQGAN(tokenizer.config)))
    words = ["gallery", str(root), "bare", "-o", str(tmp_path / "g.png"), "--tokenizer"]
    ended = run_seit(capsys, *words, str(tmp_path / "other.safetensors"))
    assert ended.code == 2
    assert "another tokenizer" in " ".join(ended.err.split())
    (tmp_path / "own.safetensors").write_bytes(save_tokenizer(tokenizer))
    assert run_seit(capsys, *words, str(tmp_path / "own.safetensors")).code == 0
    assert load_manifest(open_store(str(root)), "bare").manifest.version == 1


def test_a_recipe_of_any_name_is_drawn(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "own.json"
    recipe.write_text(json.dumps({"name": "$^$"}))
    sheet = tmp_path / "g.png"
    words = ["gallery", str(root), "small", "--recipe", str(recipe), "-o", str(sheet)]
    assert run_seit(capsys, *words).code == 0
    assert sheet.read_bytes().startswith(b"\x89PNG")
