"""Pictures of an ingest that become no row, because an earlier one has the same bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import ray

from services.errors import InvalidInputError
from services.shards.grid_hashes import PICTURES, HashArray, known_hashes, split_hashes
from services.shards.manifest import LoadedManifest
from services.shards.store import open_store
from services.sources.sample import PictureSource
from services.stream.cluster import Flag
from services.stream.ingest_actor import SurveyActor
from services.stream.ingest_config import IngestConfig
from services.stream.ingest_jobs import Progress, run_jobs


def survey(
    config: IngestConfig,
    source: PictureSource,
    shared: ray.ObjectRef[PictureSource],
    standing: LoadedManifest | None,
    cancelled: Flag,
    progress: Progress | None,
) -> dict[int, HashArray]:
    """Hashes of each job's pictures that are not to become rows, since others have them before.

    Splits are apart from each other: a picture of validation stays, whatever training holds.
    """
    jobs = [{"job": number} for number in range(len(source.sizes))]
    found: dict[str, dict[int, HashArray]] = {}
    done = 0
    rows = run_jobs(config, SurveyActor, jobs, (config, shared, cancelled))
    seen: set[int] = set()
    for row in rows:
        hashes = np.frombuffer(row["hashes"], "<u8").astype(np.uint64)
        found.setdefault(row["split"], {})[row["job"]] = hashes
        if row["job"] not in seen:
            seen.add(row["job"])
            done += source.sizes[row["job"]]
        if progress is not None:
            progress("duplicates", done, sum(source.sizes), source.unit)
    drop: dict[int, HashArray] = {}
    for name, by_job in found.items():
        for number, hashes in repeated(by_job, _standing_hashes(config, standing, name)).items():
            drop[number] = np.concatenate([drop.get(number, hashes[:0]), hashes])
    return drop


def _standing_hashes(
    config: IngestConfig, standing: LoadedManifest | None, name: str
) -> HashArray | None:
    """Hashes of the pictures whose rows stand in a split that is added to; None for no rows."""
    if config.mode != "append" or standing is None:
        return None
    split = next((one for one in standing.manifest.splits if one.name == name), None)
    if split is None:
        return None
    if known_hashes(split, PICTURES)[1] is None:
        raise InvalidInputError(
            f"split {name!r} of dataset {config.dataset!r} does not know the pictures of its rows,"
            " which an earlier program wrote, so duplicates of them cannot be found: use"
            " --duplicates keep, or ingest all pictures anew with --mode replace"
        )
    return split_hashes(open_store(config.root), config.dataset, [split], PICTURES)


def repeated(
    jobs: Mapping[int, HashArray], standing: HashArray | None = None
) -> dict[int, HashArray]:
    """For each job the hashes, ascending, that an earlier job or the rows that stand have already.

    jobs: hashes of each job's pictures, one for each. Equal ones within a job are the job's own
    affair. Takes 28 bytes a picture.
    """
    numbers = sorted(jobs)
    if not numbers:
        return {}
    hashes = np.concatenate([np.unique(jobs[number]) for number in numbers])
    owners = np.repeat(numbers, [len(np.unique(jobs[number])) for number in numbers])
    order = np.argsort(hashes, kind="stable")  # equal ones by job
    ordered = hashes[order]
    gone = np.zeros(len(ordered), bool)
    gone[1:] = ordered[1:] == ordered[:-1]
    if standing is not None and len(standing):
        at = np.searchsorted(standing, ordered).clip(max=len(standing) - 1)
        gone |= standing[at] == ordered
    found, place = ordered[gone], owners[order][gone]
    by_job = np.argsort(place, kind="stable")  # ascending within each
    found, place = found[by_job], place[by_job]
    cuts = np.searchsorted(place, [*numbers, numbers[-1] + 1])
    return {
        number: found[start:stop]
        for number, start, stop in zip(numbers, cuts[:-1], cuts[1:], strict=True)
    }
