"""A GPU that is not there: tensors say that they lie on it, and have shapes but no values.

Operations on tensors of two devices fail as on a GPU. What would make the host wait for it is
raised: a value that is read, a shape that depends on values, a copy out of pageable memory, or one
to the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from services.augment.color import _normal_levels

aten = torch.ops.aten
GPU = torch.device("cuda", 0)

READS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
"""Operations that read values of the device, or whose output's size depends on them."""
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""These do so where an index is a mask of booleans: a hidden `nonzero`."""


class WaitsError(Exception):
    """The host would wait for the GPU."""


class _Host(TorchDispatchMode):
    """What the fake tensors beneath let pass, but a GPU's host would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._pinned: dict[int, Tensor] = {}  # held, so that no number is given twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.is_pinned.default:
            return id(args[0]) in self._pinned
        if func is aten._pin_memory.default:  # the fake tensors know of no such memory
            assert args[0].device.type == "cpu"
            copy = args[0].clone()
            self._pinned[id(copy)] = copy
            return copy
        tensors = [one for one in args if isinstance(one, Tensor)]
        if func in READS and tensors[0].is_cuda:
            raise WaitsError(f"{func} of a tensor on the GPU")
        if func in INDEXED and args[0].is_cuda:
            for index in args[1]:
                if index is not None and (index.dtype == torch.bool or not index.is_cuda):
                    raise WaitsError(f"{func} by {index.dtype} on {index.device}")
        found = func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            source = args[1] if func is aten.copy_.default else args[0]
            free = args[2:] == (True,) or kwargs.get("non_blocking", False)
            if source.device != found.device and not (free and id(source) in self._pinned):
                raise WaitsError(f"{func} from {source.device} to {found.device}, {free=}")
        return found


class FakeGpu:
    """The modes, and ways on to the device."""

    def __init__(self) -> None:
        # Real tensors of the host's memory may come along; none of them is computed with.
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """`WaitsError` for what would wait; without it models are built and moved."""
        with self.fake, _Host():
            yield

    def move(self, module: nn.Module) -> nn.Module:
        """The module in place, its parameters and buffers on the device."""
        with self.fake:
            for part in module.modules():
                for name, value in part._parameters.items():
                    if value is not None:
                        part._parameters[name] = nn.Parameter(
                            value.detach().to(GPU), requires_grad=value.requires_grad
                        )
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        part._buffers[name] = buffer.to(GPU)
        return module


@contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """A GPU for one test; tables that are kept for each device know it no longer afterwards."""
    _normal_levels.cache_clear()
    try:
        # Autocast looks for a real GPU, and would leave everything in float32.
        with (
            patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            patch("torch.cuda.is_bf16_supported", lambda: True),
        ):
            yield FakeGpu()
    finally:
        _normal_levels.cache_clear()
