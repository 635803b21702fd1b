"""How the command line shows a table: whole, however narrow the terminal is."""

from __future__ import annotations

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table

_ROOMY = 10_000  # characters: more than any cell has


def show(out: Console, renderable: RenderableType) -> None:
    """Print sentences in the width of `out`, and tables in no less than their figures need."""
    out.print(renderable, crop=False)


def tell(out: Console, sentence: str) -> None:
    """Print a sentence in one line, however narrow the terminal is: what it names can be copied."""
    out.print(sentence, markup=False, highlight=False, soft_wrap=True)


def table_of(*columns: str) -> Table:
    """An empty table; a heading that ends in `>` belongs to a column of numbers."""
    table = _Whole(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        if column.endswith(">"):
            table.add_column(column[:-1], justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold", min_width=10)
    return table


class _Whole(Table):
    """Where its figures need more room than there is, its lines are longer: none is cut off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        roomy = options.update(max_width=_ROOMY)
        for column in self.columns:
            if column.no_wrap:
                cells = (column.header, *column.cells)
                column.min_width = max(
                    Measurement.get(console, roomy, one).maximum for one in cells
                )
        needed = Measurement.get(console, roomy, self).minimum
        wide = options.update(max_width=max(options.max_width, needed))
        yield from super().__rich_console__(console, wide)
