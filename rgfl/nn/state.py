"""Whether a file of tensors is whole, and its tensors are those that a network wants, in words. No torch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
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


def zip_fault(file: Path | io.BytesIO) -> str:
    """Why a zip is not as torch.save wrote it, in words; "" if it is. torch.load asks for none of this."""
    try:
        with zipfile.ZipFile(file) as entries:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
                return "compressed, so a few megabytes may become many gigabytes; write it anew by torch.save"
            damaged = entries.testzip() is not None  # by its CRCs
    except Exception:  # a flipped bit in a header: many types, from zlib's to NotImplementedError
        damaged = True
    if not damaged:
        return ""
    return (
        "damaged: not the bytes that were written; copy or train it again (or written without checksums, by "
        "torch.serialization.set_crc32_options(False): write it anew with them)"
    )
