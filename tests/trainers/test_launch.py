"""What a launch asks of Ray."""

from __future__ import annotations

import pytest

from trainers.config import ClusterConfig
from trainers.launch import _collectives


@pytest.mark.parametrize(
    ("workers", "gpus", "wanted"),
    [(2, 0.0, "gloo"), (2, 1.0, "nccl"), (1, 0.5, "nccl"), (2, 0.5, "gloo"), (4, 2.0, "nccl")],
)
def test_workers_that_share_a_gpu_do_not_meet_through_nccl(
    workers: int, gpus: float, wanted: str
) -> None:
    assert _collectives(ClusterConfig(workers=workers, gpus_per_worker=gpus)) == wanted
