"""The header of a safetensors file, read by its specification and within bounds, without a tensor library: names, types, shapes, places.

It refuses a header that is too long, types it does not know, and tensors that overlap, leave holes, or do not end with the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.artifact.strict_json import Malformed, parse

MOST_HEADER_BYTES = 2**20
MOST_TENSORS = 65_536
MOST_DIMENSIONS = 8
BYTES_OF = {"F32": 4, "F16": 2, "BF16": 2}  # what an adapter is written in
_NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+){0,63}")
_CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: type as the file names it, shape, and its bytes in the file (from the file's beginning)."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """Every tensor by name, in the order of its bytes. Raises Malformed.

    The format: https://github.com/huggingface/safetensors#format; a header of 8 bytes that say its length N, N bytes of JSON, then the tensors.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = _length(file.read(8), size)
        return tensors_of(file.read(length), size)


def _length(first: bytes, size: int) -> int:
    length = int.from_bytes(first, "little")
    if len(first) < 8:
        raise Malformed(f"a file of {size} bytes")
    if length > min(MOST_HEADER_BYTES, size - 8):
        raise Malformed(f"a header of {length:,} bytes in a file of {size:,}")
    return length


def tensors_of(data: bytes, size: int) -> dict[str, Tensor]:
    """The same of the header's JSON and the file's size (bytes)."""
    if not data.startswith(b"{"):
        raise Malformed("a header that is no JSON object")
    listed = parse(data.rstrip(b" "), MOST_HEADER_BYTES)
    _refuse_metadata(listed.pop("__metadata__", {}))
    if not 0 < len(listed) <= MOST_TENSORS:
        raise Malformed(f"{len(listed):,} tensors")
    found = {name: _tensor(name, facts, 8 + len(data)) for name, facts in listed.items()}
    return _without_gaps(found, 8 + len(data), size)


def _refuse_metadata(said: Any) -> None:
    if said not in ({}, {"format": "pt"}):
        raise Malformed("metadata other than format: pt")


def _tensor(name: str, facts: Any, beginning: int) -> Tensor:
    if not _NAME.fullmatch(name) or len(name) > 512:
        raise Malformed(f"a tensor named {name[:80]!r}")
    if not isinstance(facts, dict) or set(facts) != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"{name}: keys other than dtype, shape and data_offsets")
    dtype, shape, offsets = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES_OF:
        raise Malformed(f"{name}: type {str(dtype)[:20]!r}, not one of {', '.join(BYTES_OF)}")
    if not _are_sizes(shape) or not len(shape) <= MOST_DIMENSIONS or not _are_sizes(offsets) or len(offsets) != 2:
        raise Malformed(f"{name}: a shape or place that is none")
    if offsets[1] - offsets[0] != math.prod(shape) * BYTES_OF[dtype]:
        raise Malformed(f"{name}: {offsets[1] - offsets[0]:,} bytes for shape {shape} of {dtype}")
    return Tensor(dtype, tuple(shape), beginning + offsets[0], beginning + offsets[1])


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _without_gaps(found: dict[str, Tensor], beginning: int, size: int) -> dict[str, Tensor]:
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].start, item[1].end)))
    at = beginning
    for name, tensor in ordered.items():
        if tensor.start != at:
            raise Malformed(f"{name}: begins at byte {tensor.start:,}, where {at:,} is next")
        at = tensor.end
    if at != size:
        raise Malformed(f"tensors that end at byte {at:,} in a file of {size:,}")
    return ordered


def names_not_finite(path: Path, tensors: dict[str, Tensor]) -> Iterator[str]:
    """The tensors that hold NaN or infinity. Memory: one chunk of 16 MiB."""
    with open(path, "rb") as file:
        for name, tensor in tensors.items():
            file.seek(tensor.start)
            left = tensor.end - tensor.start
            while left > 0:
                data = file.read(min(left, _CHUNK_BYTES))
                left -= len(data)
                if not data or not _is_finite(data, tensor.dtype):
                    yield name
                    break


def _is_finite(data: bytes, dtype: str) -> bool:
    """All bits of the exponent set: infinity or NaN (IEEE 754; bfloat16 is the upper half of a float32)."""
    import numpy as np

    bits, exponent = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}[dtype]
    return not bool(np.any((np.frombuffer(data, dtype=bits) & exponent) == exponent))
