"""How a run is laid out in executions and tasks: all steps once, in order, bounded."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.stream.pipeline import EXECUTION_TASKS, TASK_ROWS, block_bytes, executions


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 200_000),
    st.integers(0, 10**7),
    st.one_of(st.integers(0, 10**4), st.integers(0, 10**8)),
)
def test_steps_come_once_and_in_order_in_bounded_executions(
    share_rows: int, start: int, steps: int
) -> None:
    stop, at = start + steps, start
    for part, task_steps in executions(share_rows, start, stop):
        assert part.start == at < part.stop <= stop
        assert part.step == 1
        at = part.stop
        assert task_steps >= 1
        tasks = -(-len(part) // task_steps)
        aim, limit = EXECUTION_TASKS
        assert tasks <= limit
        # More than aimed at only where tasks are as large as they may be.
        assert tasks <= aim or (task_steps + 1) * share_rows > TASK_ROWS[1]
        assert task_steps == 1 or task_steps * share_rows <= TASK_ROWS[1]
        # Small tasks only where the run is short: a task has its cost whatever it carries.
        assert (
            task_steps * share_rows > TASK_ROWS[0] // 2 or tasks == 1 or share_rows > TASK_ROWS[0]
        )
        if at < stop:  # a further execution starts actors anew: only where this one is full
            assert tasks == limit
            assert (task_steps + 1) * share_rows > TASK_ROWS[1]
    assert at == stop


@settings(deadline=None, max_examples=300)
@given(st.integers(100, 10**9), st.floats(0.05, 50))
@example(141, 1.203125)  # where rounding down made the target too small
def test_no_block_is_cut_inside_a_share(fetched: int, ratio: float) -> None:
    """Ray collects shares until they pass the target, and cuts what is half as large again."""
    augmented = int(fetched * ratio)
    target = block_bytes(fetched, augmented)
    collected = fetched * (target // fetched + 1)  # of a task that fetches
    # At just that size it is cut in the proportion of the target: between two shares.
    assert collected <= 1.5 * target or collected == fetched
    assert fetched <= 1.5 * target
    if not 1.2 * fetched < augmented < 2 * fetched:  # there the consumer joins what was cut
        assert augmented <= 1.5 * target  # what an augmenting task makes at a time
    if augmented < 2 * fetched:
        # each share is a block of its own, though their heads differ by some bytes
        assert target < 0.85 * fetched
        assert 1.15 * fetched < 1.5 * target
