from __future__ import annotations

import pytest

from services.errors import FormatError, InvalidInputError
from services.shards.validate import check_name, check_spec
from services.wire.seit import v1 as wire


@pytest.mark.parametrize("name", ["a", "0", "imagenet-1k.v2", "a_b", "a" * 63])
def test_names_that_are_valid(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".a", "a..b", "A", "a b", "a/b", "a" * 64, "a\n", "é"])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(InvalidInputError, match="split name"):
        check_name(name, "split")


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 0, 0), (128, 128, 65_536, 65_536, 65_536, 65_536)])
def test_sizes_at_their_bounds(sizes: tuple[int, ...]) -> None:
    check_spec(wire.TokenSpec(*sizes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grid_height", 0),
        ("grid_height", 129),
        ("grid_width", 129),
        ("codes", 0),
        ("codes", 65_537),
        ("channels", 0),
        ("image_width", 65_537),
    ],
)
def test_a_size_out_of_bounds_is_named(field: str, value: int) -> None:
    sizes = {"grid_height": 4, "grid_width": 4, "codes": 9, "channels": 2} | {field: value}
    with pytest.raises(FormatError, match=f"spec.{field} is {value}, valid are"):
        check_spec(wire.TokenSpec(**sizes))
