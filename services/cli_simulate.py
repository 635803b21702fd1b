"""`seit simulate`: a run of any size on paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.table import Table

from services.cli_store import progress_bar
from services.errors import InvalidInputError
from services.plan.epoch import OrderSpec
from services.plan.simulate import Rates, Scenario, Simulation, simulate
from services.settings import quantity

_DECIMALS = ("B", "KB", "MB", "GB", "TB", "PB")


def _size(text: str, name: str) -> float:
    value = quantity(text)
    if not 1 <= value < 2.0**63:
        raise InvalidInputError(
            f"{name} is {text!r}, expected a number from 1 on, such as 5e9 or 200GB (K, M, G and T"
            " stand for powers of 1000): correct it"
        )
    return value


@dataclass(frozen=True)
class Simulate:
    """Say what a run of any size asks of storage, caches and cores, from its plan, without one."""

    rows: Annotated[str, tyro.conf.arg(metavar="N", help="rows of the training split: 5e9, 1.3M")]
    nodes: Annotated[int, tyro.conf.arg(help="machines (count), each with a cache of its own")]
    gpus: Annotated[int, tyro.conf.arg(help="trainers (count) over all nodes, a multiple of them")]
    cache: Annotated[
        str, tyro.conf.arg(metavar="BYTES", help="each node's SEIT_CACHE_BYTES: 200GB, 2T")
    ] = "20G"
    gpu_rows: Annotated[
        float,
        tyro.conf.arg(help="rows/s that one GPU trains: images/s of `seit streams` / its GPUs"),
    ] = 1000.0
    global_batch: Annotated[
        int, tyro.conf.arg(help="rows of a step over all GPUs (count); 0 for a block a GPU")
    ] = 0
    block: Annotated[int, tyro.conf.arg(help="rows that stay together (count)")] = 128
    lanes: Annotated[
        int, tyro.conf.arg(help="fixed parts of the split (count); 0 for as many as blocks")
    ] = 0
    window_shards: Annotated[
        int, tyro.conf.arg(help="shards of a lane that one shuffle mixes (count)")
    ] = 16
    shard_rows: Annotated[int, tyro.conf.arg(help="rows of a full shard (count)")] = 8192
    tokens: Annotated[int, tyro.conf.arg(help="tokens of a row (count): 1024 for 32x32")] = 1024
    codes: Annotated[int, tyro.conf.arg(help="codes of the codebook: up to 256 take a byte")] = 391
    row_bytes: Annotated[
        float, tyro.conf.arg(help="bytes of a stored row: bytes / rows of `seit inspect`")
    ] = Rates.stored_bytes
    node_bandwidth: Annotated[
        str, tyro.conf.arg(metavar="BYTES", help="bytes/s of a node's network")
    ] = "1.25G"
    request_seconds: Annotated[
        float, tyro.conf.arg(help="seconds until storage begins to answer a request")
    ] = Rates.request_seconds
    epochs: Annotated[int, tyro.conf.arg(help="epochs that are followed (count)")] = 3
    seed: Annotated[int, tyro.conf.arg(help="seed of the order")] = 0

    def run(self, out: Console) -> int:
        scenario = self._scenario()
        with progress_bar(MofNCompleteColumn()) as progress:
            task = progress.add_task("nodes", total=self.nodes)
            found = simulate(scenario, lambda done, total: progress.update(task, completed=done))
        out.print(_summary(scenario, found))
        out.print(_traffic(found))
        for warning in _warnings(scenario, found):
            out.print(f"! {warning}", markup=False)
        return 0

    def _scenario(self) -> Scenario:
        batch = self.global_batch or self.gpus * self.block
        blocks = batch // max(1, self.block)
        order = OrderSpec(self.seed, batch, self.block, self.lanes or blocks, self.window_shards)
        if self.tokens < 1 or self.codes < 2 or not self.row_bytes > 0:
            raise InvalidInputError(
                f"tokens {self.tokens}, codes {self.codes}, row_bytes {self.row_bytes}: expected at"
                " least 1 token, 2 codes and more than 0 bytes"
            )
        if not self.request_seconds >= 0:
            raise InvalidInputError(
                f"request_seconds is {self.request_seconds}, expected 0 or more"
            )
        # Beside the ids: label, size of the source, offset of the key, and the key (entry.py).
        beside = 8 + 8 + 8 + 24
        return Scenario(
            rows=int(_size(self.rows, "rows")),
            shard_rows=self.shard_rows,
            nodes=self.nodes,
            gpus=self.gpus,
            cache_bytes=int(_size(self.cache, "cache")),
            order=order,
            gpu_rows=self.gpu_rows,
            cached_bytes=self.tokens * (1 if self.codes <= 256 else 2) + beside,
            epochs=self.epochs,
            rates=Rates(
                stored_bytes=self.row_bytes,
                node_bytes=_size(self.node_bandwidth, "node_bandwidth"),
                request_seconds=self.request_seconds,
            ),
        )


def in_units(value: float) -> str:
    """Bytes as people write them: 1.5 GB."""
    at = 0
    while abs(value) >= 1000 and at < len(_DECIMALS) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.3g} {_DECIMALS[at]}"


def _summary(scenario: Scenario, found: Simulation) -> Table:
    table = Table("what", "comes to", title=f"{scenario.rows:,} rows on {scenario.nodes} nodes")
    quality, order = found.quality, scenario.order
    per_node = scenario.gpus // scenario.nodes
    for what, comes_to in (
        ("on storage", f"{in_units(found.stored_bytes)} in {found.shards:,} shards"),
        (
            "order",
            f"batch {order.global_batch_rows:,}, block {order.block_rows}, {order.lanes} lanes,"
            f" window {order.window_shards}",
        ),
        ("an epoch", f"{found.epoch_seconds / 3600:.2f} h at {scenario.gpu_rows:g} rows/s a GPU"),
        ("time to the first batch", f"{found.first_batch_seconds:.1f} s, caches empty"),
        ("open at once", f"{in_units(found.open_bytes)} of a node's cache"),
        (
            "required of storage",
            f"{in_units(found.first_store_rate)}/s in the first epoch,"
            f" {in_units(found.later_store_rate)}/s later",
        ),
        (
            "cores that fetch",
            f"{found.serve_cores:.2f} a node of {per_node} GPUs, augmentation on top",
        ),
        (
            "shuffle",
            f"{quality.shards_per_batch:,.0f} shards in a batch (full shuffle"
            f" {quality.full_shards_per_batch:,.0f}), {quality.shards_per_block:,.1f} in a block,"
            f" travel {quality.travel:.2f}",
        ),
    ):
        table.add_row(what, comes_to)
    return table


def _traffic(found: Simulation) -> Table:
    table = Table("epoch", "from storage", "of the dataset", "requests", "cache hits")
    table.add_column("busiest node")
    for number, epoch in enumerate(found.epochs):
        table.add_row(
            str(number),
            in_units(epoch.bytes),
            f"{epoch.bytes / found.stored_bytes:.2f}",
            f"{epoch.requests:,}",
            f"{epoch.hits:.1%}",
            in_units(epoch.busiest_node_bytes),
        )
    return table


def _warnings(scenario: Scenario, found: Simulation) -> list[str]:
    said = []
    if (times := found.epochs[0].bytes / found.stored_bytes) > 1.1:
        said.append(
            f"nodes read the same shards, the dataset {times:.1f} times in all: take as many lanes"
            f" as a step has blocks ({scenario.order.blocks_per_step})"
        )
    node_rate = found.epochs[0].busiest_node_bytes / found.epoch_seconds
    if node_rate > scenario.rates.node_bytes:
        said.append(
            f"the busiest node would read {in_units(node_rate)}/s, its network gives"
            f" {in_units(scenario.rates.node_bytes)}/s: its GPUs would wait"
        )
    if found.quality.shards_per_batch < 0.5 * found.quality.full_shards_per_batch:
        said.append(
            "a batch mixes less than half of the shards that a full shuffle would: where shards"
            " hold few classes, take a larger window or more lanes"
        )
    return said
