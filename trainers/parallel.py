"""One model on several ranks: a copy on each (DDP), or a shard on each (FSDP2).

Both take the same gradient, the mean over the ranks, and both are saved alike: whole tensors under
the model's own names, and the optimizer's state by the number of each parameter. So a run goes on
from the other's checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

Kind = Literal["ddp", "fsdp"]

_STACKS = ("blocks", "decoder_blocks")


def compile_model(model: nn.Module, kind: Kind) -> None:
    """torch.compile, in place and before `spread`: the whole, or block by block for shards."""
    if kind == "fsdp":  # what gathers a block's shards stands between the blocks
        blocks = _blocks(model)
        # Blocks share their code, which is compiled for each share of dropped paths, in training
        # and in evaluation; beyond the default of 8 the rest would run uncompiled.
        limit = max(8, 4 * len(blocks))
        for block in blocks:
            block.compile(recompile_limit=limit)
    else:
        model.compile()


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of all stacks, wherever they stand in the model."""
    return [
        block
        for name, stack in model.named_modules()
        if name.rpartition(".")[2] in _STACKS and _is_transformer(stack)
        for block in stack.children()
    ]


def _is_transformer(stack: nn.Module) -> bool:
    # Convolutions of UperNet stand under such a name as well. timm's import takes seconds, but who
    # has built a block has made it.
    from timm.models.vision_transformer import Block

    return all(isinstance(block, Block) for block in stack.children())


def spread(model: nn.Module, kind: Kind, device: torch.device, world: int) -> nn.Module:
    """What to call in place of `model`, whose weights are the same on every rank.

    With "fsdp" its parameters, and later their gradients and the optimizer's state, are sharded:
    each transformer block is gathered for its turn alone.
    """
    if world == 1:
        return model
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (world,))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )


def _holds_shards(module: nn.Module) -> TypeGuard[FSDPModule]:
    # Its import takes a fourth of a program's start: a run without shards goes without it.
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def _is_shard(value: object) -> TypeGuard[DTensor]:
    if "torch.distributed.tensor" not in sys.modules:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def unsynced(module: nn.Module, more: bool) -> AbstractContextManager[None]:
    """While `more` parts of a step follow, its gradients stay on the rank."""
    if _holds_shards(module):
        module.set_requires_gradient_sync(not more)
    elif more and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def reshard(module: nn.Module) -> None:
    """Give back what an evaluation gathered, so that parameters are shards again."""
    for part in module.modules():
        if _holds_shards(part):
            part.reshard()


def whole(value: Any, keep: bool) -> Any:
    """A nest of dicts and lists with its shards gathered into whole tensors, in host memory.

    Every rank calls it, with the same nest; only where `keep` is set is the result of use.
    """
    if _is_shard(value):
        full = value.full_tensor()
        return full.detach().cpu() if keep else None
    if isinstance(value, Mapping):
        return {key: whole(inner, keep) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(inner, keep) for inner in value)
    return value


def plain(value: Tensor) -> Tensor:
    """A reduced figure, such as a norm, as each rank's own tensor."""
    whole_value: Tensor = value.full_tensor() if _is_shard(value) else value
    return whole_value


def shared_out(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, as a checkpoint holds it, sharded like the parameters that it is for.

    Done before the optimizer takes it, tensor by tensor: a device never holds the whole.
    """
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    of_each = dict(state["state"])
    for number, parameter in zip(numbers, parameters, strict=True):
        if _is_shard(parameter) and number in of_each:
            from torch.distributed.tensor import distribute_tensor

            of_each[number] = {
                name: distribute_tensor(value, parameter.device_mesh, parameter.placements)
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim
                else value
                for name, value in of_each[number].items()
            }
    return {**state, "state": of_each}
