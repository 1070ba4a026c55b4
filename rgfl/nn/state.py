"""Whether the tensors of a file are those that a network wants, in words. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Keys of `wanted` that `given` lacks, and those of another shape there, by what is wrong with them."""
    return {
        "missing": [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")],
        "of another shape": [
            f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
            for key, value in wanted.items()
            if key in given and given[key].shape != value.shape
        ],
    }


def listed(problems: Mapping[str, Sequence[str]]) -> str:
    """`2 missing: a, b; 1 of another shape: …`"""
    return "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in problems.items() if keys)


def some(keys: Sequence[str]) -> str:
    """The first five."""
    return ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")
