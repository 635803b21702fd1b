"""Copies to a device for which the host does not wait."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(values: Tensor, device: torch.device | str) -> Tensor:
    """The same values on `device`; the host does not wait for a GPU, whatever it has in hand.

    What is copied to a GPU may be changed or let go at once: the page-locked copy is this call's
    own, and torch uses its memory again only when the GPU has read it.
    """
    if torch.device(device).type == "cuda" and not values.is_cuda:
        values = values.pin_memory()  # a copy out of pageable memory would wait
    return values.to(device, non_blocking=True)
