"""Structs of Thrift's compact protocol, in which a Parquet file describes itself: read by the
numbers of their fields, whatever their bytes are, in Python alone.
"""

from __future__ import annotations

from typing import Any, TypeAlias

Fields: TypeAlias = dict[int, Any]
"""By number: an int, a bool, bytes, the fields of a struct, or a list of one of these."""

_TRUE, _FALSE, _BYTE, _INTEGERS, _BINARY, _LIST, _STRUCT = 1, 2, 3, (4, 5, 6), 8, 9, 12
_LONG_LIST = 15  # its length follows


def read_struct(data: bytes, place: int, depth: int) -> tuple[Fields, int]:
    """The fields of the struct at a place, and the place behind it.

    depth: of structs and lists in each other, at most.
    Raises: IndexError or ValueError for what is none.
    """
    if not depth:
        raise ValueError("too deep")
    fields: Fields = {}
    number = 0
    while byte := data[place]:
        place += 1
        kind, step = byte & 15, byte >> 4
        if step:
            number += step
        else:
            number, place = _integer(data, place)
        if number in fields:
            raise ValueError("twice")  # readers differ in which of the two they take
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], place = _value(data, place, kind, depth)
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTEGERS:
        return _integer(data, place)
    if kind == _STRUCT:
        return read_struct(data, place, depth - 1)
    if kind == _BINARY:
        length, place = _varint(data, place)
        if length > len(data) - place:
            raise ValueError("longer than the file")
        return data[place : place + length], place + length
    if kind == _LIST:
        return _list(data, place, depth - 1)
    if kind == _BYTE:
        return data[place], place + 1
    raise ValueError("no type that Parquet has")


def _list(data: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    if not depth:
        raise ValueError("too deep")
    kind, length = data[place] & 15, data[place] >> 4
    place += 1
    if length == _LONG_LIST:
        length, place = _varint(data, place)
    found: list[Any] = []
    for _ in range(length):  # each takes a byte at least, so it ends with the data
        if kind in (_TRUE, _FALSE):
            value: Any = data[place] == _TRUE
            place += 1
        else:
            value, place = _value(data, place, kind, depth)
        found.append(value)
    return found, place


def _integer(data: bytes, place: int) -> tuple[int, int]:
    raw, place = _varint(data, place)
    return raw >> 1 ^ -(raw & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("too long")
