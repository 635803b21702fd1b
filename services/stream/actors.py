"""The recipe in a Ray actor: networks are loaded once and stay for the whole run."""

from __future__ import annotations

import pyarrow as pa
import torch

from services.stream.augmentation import augment_share, augmenter_for
from services.stream.request import StreamRequest


class AugmentActor:
    """Callable class for `Dataset.map_batches`: whole shares in, whole shares out.

    threads: torch's intra-op threads; an actor that may use a fraction of a core takes one, or the
    pool's actors would fight each other for the same cores. device: "cpu" or "cuda".
    """

    def __init__(self, request: StreamRequest, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self._request, self._device = request, device
        augmenter_for(request, device)

    def __call__(self, table: pa.Table) -> pa.Table:
        return augment_share(self._request, table, self._device)
