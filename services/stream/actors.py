"""The recipe in a Ray actor: networks are loaded once and stay for the whole run."""

from __future__ import annotations

import os
from dataclasses import replace

import pyarrow as pa
import ray
import torch

from services.stream.augmentation import augment_share, augmenter_for
from services.stream.batch import pack_batch
from services.stream.request import StreamRequest
from services.stream.table import unpack_share


class AugmentActor:
    """Callable class for `Dataset.map_batches`: whole shares in, whole shares out.

    threads: torch's intra-op threads, see Pool.threads. device: "cpu" or "cuda".
    """

    def __init__(self, request: StreamRequest, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._request, self._device = request, device
        context = ray.get_runtime_context()
        came_back = context.was_current_actor_reconstructed
        self._restarted = f"{context.get_node_id()}/{os.getpid()}" if came_back else ""
        augmenter_for(request, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        batch = augment_share(self._request, unpack_share(table), self._device)
        batch.account = replace(batch.account, restarted=self._restarted)
        return pack_batch(batch)
