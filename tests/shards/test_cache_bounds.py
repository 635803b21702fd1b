"""What a process keeps of the node's cache is bounded, however long it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from services.shards.cache import ShardCache
from services.shards.store import Store
from services.wire.seit import v1 as wire


def test_more_shards_than_files_may_be_open_are_read_all_the_same(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written: Any
) -> None:
    """In a process of its own, whose limit can be no higher: each epoch asks for all of them."""
    _, shards, _ = written(60)
    asked = [TypeAdapter(wire.Shard).dump_json(shard).decode() for shard in shards]
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
import numpy as np
from pydantic import TypeAdapter
from services.shards.cache import ShardCache
from services.shards.store import open_store
from services.wire.seit import v1 as wire
resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))
shards = [TypeAdapter(wire.Shard).validate_json(one) for one in {asked!r}]
spec = TypeAdapter(wire.TokenSpec).validate_json({TypeAdapter(wire.TokenSpec).dump_json(spec)!r})
cache = ShardCache({str(tmp_path / "cache")!r}, 1 << 30)
root = open_store({root.url!r})
held = 0
for _ in range(2):
    for shard in shards:
        cache.rows(root, "ds", shard, spec).take(np.arange(40))
held = sum(cache.holds(root, "ds", shard) for shard in shards)
print(held, cache.counters.misses)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["25", "60"]


def test_what_was_found_sound_is_forgotten_with_the_entry(
    root: Store, tmp_path: Path, spec: wire.TokenSpec, written: Any
) -> None:
    """A run of months fetches each shard many times: nothing may grow with that."""
    _, shards, one = written(12)
    cache = ShardCache(tmp_path / "cache", 4 * one)
    for _ in range(8):
        for shard in shards:
            cache.rows(root, "ds", shard, spec)
    assert cache.counters.misses > 3 * len(shards)
    assert len(cache._verified) <= len(shards)
