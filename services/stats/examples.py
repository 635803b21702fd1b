"""Examples for the OpenAPI document: made by the very functions that make the answers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pydantic

from services.shards.manifest import LoadedManifest
from services.stats.answers import JSON, PROTOBUF
from services.stats.content import code_report, label_report
from services.stats.facts import facts_of
from services.stats.flows import Word, summarize_words, without_ranks
from services.stats.growth import audit, version_storage
from services.stats.health import health_report, standing_findings
from services.stats.listing import ShardQuery, shard_order, shard_page
from services.stats.paging import Page
from services.wire.seit import v1 as wire

_WHEN = "2026-01-31T12:00:00.000000+00:00"
_NOW = 1_769_860_800.0  # the same
_PAGE = Page(version=1, start=0, limit=2)


def example(kind: type[Any]) -> dict[int | str, dict[str, Any]]:
    """Documentation of the answer 200 with a message of `kind`: an example, and both media."""
    shown = pydantic.TypeAdapter(kind).dump_python(_messages()[kind], mode="json")
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": {JSON: {"example": shown}, PROTOBUF: binary}}}


def _manifest() -> wire.Manifest:
    def shard(name: str, rows: tuple[int, int]) -> wire.Shard:
        return wire.Shard(
            path=f"shards/train-{name * 4}.parquet",
            rows=sum(rows),
            bytes=sum(rows) * 1001,
            xxh3=name * 8,
            source_bytes=sum(rows) * 110_000,
            labels=wire.LabelCounts(labels=[0, 1], rows=list(rows)),
        )

    return wire.Manifest(
        format=1,
        dataset="birds",
        version=1,
        created=_WHEN,
        writer="seitpp 0.1.0",
        spec=wire.TokenSpec(
            grid_height=32,
            grid_width=32,
            codes=4,
            channels=32,
            image_height=256,
            image_width=256,
        ),
        tokenizer_kind="vitvqgan",
        classes=["heron", "owl"],
        splits=[
            wire.Split(
                name="train",
                shards=[shard("3f7a", (5000, 3192)), shard("91c0", (120, 8072))],
                code_counts=[9_000_000, 5_000_000, 2_777_216, 0],
                duplicate_rows=3,
                duplicate_pictures=2,
            )
        ],
        message="first import",
    )


def _stream() -> wire.StreamInfo:
    flow = wire.Flow(
        stream="birds/train",
        workers=1,
        updated=_WHEN,
        rows=512_000,
        steps=2000,
        step=2000,
        step_target=10_000,
        seconds=61.5,
        first_batch_seconds=1.5,
        rows_per_second=8533.0,
        state="running",
        stall_seconds=2.0,
        stall_storage_seconds=1.5,
        stall_augmentation_seconds=0.5,
        consumer_seconds=55.0,
        bytes_fetched=16_400_384,
        bytes_cached=496_111_616,
    )
    stream = summarize_words("mtm-base", [Word(flow, _NOW)], _NOW + 2)
    stream.kind, stream.recipe, stream.actors = "MtmRun", "mtm", 4
    return stream


@cache
def _messages() -> dict[type[Any], Any]:
    facts, stream = facts_of(LoadedManifest(_manifest(), "3f7a" * 8)), _stream()
    summary = facts.summary
    report = replace(facts.storage, folder=audit([], [facts.file_sizes()], _NOW))
    job = wire.Job(
        id="raysubmit_x7Kq2",
        state="RUNNING",
        program="mtm.py",
        run="mtm-base",
        started="2026-01-31T11:58:00+00:00",
        actors=4,
    )
    cluster = wire.Cluster(
        state="reachable",
        asked="2026-01-31T12:00:00+00:00",
        nodes_alive=3,
        cpus=48,
        gpus=8,
        actors_alive=9,
    )
    sample = wire.Sample(
        row=0,
        key="owl/0001.jpg",
        label=1,
        class_name="owl",
        source_bytes=110_000,
        shard=facts.shards.paths[0],
    )
    samples = wire.SampleList(
        dataset="birds", version=1, split="train", rows=16_384, samples=[sample], next="1.1"
    )
    samples.views = ["original", "crop", "synonyms", "swap", "noise", "coloradapt"]
    samples.undecodable = "no TokenAdapt weights were named (SEIT_STATS_TOKENADAPT)"
    found = [
        wire.DatasetList(datasets=[summary]),
        summary,
        shard_page(facts, shard_order(facts, ShardQuery()), _PAGE).message(),
        report,
        wire.GrowthReport(dataset="birds", versions=[version_storage(facts, None)]),
        label_report(facts, None, "-rows", _PAGE),
        code_report(facts, None, "-tokens", _PAGE),
        health_report(facts, standing_findings(facts), None, [stream]),
        samples,
        wire.Sample(row=0, key="owl/0001.jpg", label=1, class_name="owl", ids=[0, 2, 1, 0]),
        wire.StreamList(streams=[without_ranks(stream)]),
        stream,
        wire.JobList(cluster=cluster, jobs=[job]),
        job,
    ]
    return {type(message): message for message in found}
