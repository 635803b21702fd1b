"""A consumer of a stream as a program of its own, which a test leads step by step.

    python stream_job.py REQUEST START STOP ADDRESS ACTORS CPUS [RANK WORLD]

REQUEST: file with a JSON of a `StreamRequest`. It joins the cluster at ADDRESS, or takes threads
for "-". Each line on its standard input is the number of batches to take next; for each batch it
writes a line `batch STEP DIGEST`, after the last `end FLOW`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import xxhash

from services.augment.config import (
    AdaptConfig,
    ColorConfig,
    CropConfig,
    EdaConfig,
    MixConfig,
    RecipeConfig,
)
from services.plan.epoch import OrderSpec
from services.stream.batch import StreamBatch
from services.stream.loader import Stream
from services.stream.pool import Pool, Sharing
from services.stream.request import RowsRequest, SourceRequest, StreamRequest


def digest(batch: StreamBatch) -> str:
    """One word for everything that a trainer sees of a batch."""
    told = xxhash.xxh3_64()
    told.update(batch.rows.tobytes())
    for tensor in (batch.inputs, batch.label, batch.label_b, batch.mix, batch.weight):
        told.update(tensor.contiguous().numpy().tobytes())
    return told.hexdigest()


def write_request(request: StreamRequest, path: Path) -> None:
    path.write_text(json.dumps(asdict(request)))


def _crop(raw: dict[str, object]) -> CropConfig:
    return CropConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})  # type: ignore[arg-type]


def read_request(path: Path) -> StreamRequest:
    raw = json.loads(path.read_text())
    rows, recipe = raw["rows"], raw["recipe"]
    adapt = recipe["adapt"]
    adapt |= {"crop": _crop(adapt["crop"]), "mix": MixConfig(**adapt["mix"])}
    return StreamRequest(
        rows=RowsRequest(
            **{
                **rows,
                "sources": tuple(SourceRequest(**source) for source in rows["sources"]),
                "order": OrderSpec(**rows["order"]),
                "weights": tuple(rows["weights"]),
            }
        ),
        recipe=RecipeConfig(
            **{
                **recipe,
                "crop": tuple(recipe["crop"]),
                "eda": EdaConfig(**recipe["eda"]),
                "color": ColorConfig(**recipe["color"]),
                "plain_crop": _crop(recipe["plain_crop"]),
                "plain_mix": MixConfig(**recipe["plain_mix"]),
                "adapt": AdaptConfig(**adapt),
            }
        ),
        tokenadapt=raw["tokenadapt"],
    )


def main() -> None:
    path, start, stop, address, actors, cpus, *place = sys.argv[1:]
    rank, world = map(int, place or ("0", "1"))
    pool = sharing = None
    if address != "-":
        import ray

        ray.init(address=address, _node_ip_address=os.environ["SEIT_TEST_IP"], log_to_driver=False)
        head_start = int(os.environ["SEIT_TEST_HEAD_START"])
        pool = Pool(actors=int(actors), cpus=float(cpus), head_start=head_start)
        lag = int(os.environ.get("SEIT_TEST_SHARE_LAG", "0"))
        sharing = Sharing(lag, 30.0) if lag else None
    stream = Stream(
        read_request(Path(path)),
        rank=rank,
        world=world,
        start=int(start),
        stop=int(stop),
        pool=pool,
        sharing=sharing,
    )
    batches = iter(stream)
    out = sys.stdout
    for line in sys.stdin:
        for _ in range(int(line)):
            batch = next(batches, None)
            if batch is None:
                break
            out.write(f"batch {batch.step} {digest(batch)}\n")
            out.flush()
    batches.close()  # type: ignore[attr-defined]
    out.write(f"end {stream.flow().to_json()}\n")
    out.flush()


if __name__ == "__main__":
    main()
