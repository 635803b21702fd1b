"""The few things that ranks of a run do together, and each rank's random state.

Everything works on one rank without torch.distributed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(value: Tensor, world: int) -> Tensor:
    """`value` summed over all ranks, in place."""
    if world > 1:
        dist.all_reduce(value)
    return value


def gather(value: Tensor, device: torch.device, world: int) -> Tensor:
    """(world, *value.shape) in host memory: every rank's `value`, all of one shape.

    device: where the ranks' collectives work.
    """
    if world == 1:
        return value.cpu()[None]
    mine = value.to(device)
    everyone = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(everyone, mine)
    return torch.stack(everyone).cpu()


def generator_state(device: torch.device) -> Tensor:
    """(S,) uint8: state of torch's generators that a worker on `device` draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def restore_generators(state: Tensor, device: torch.device) -> bool:
    """Set the generators to a state of `generator_state`; False if it is of another device."""
    if state.shape != generator_state(device).shape:
        return False
    host = len(torch.get_rng_state())
    torch.set_rng_state(state[:host].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[host:].clone(), device)
    return True


def from_first(number: int, device: torch.device, world: int) -> int:
    """The number that rank 0 gives, on every rank."""
    first = world == 1 or dist.get_rank() == 0
    shared = torch.tensor(number if first else 0, device=device)
    return int(sum_over_ranks(shared, world))
