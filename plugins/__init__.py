"""RotatedNMS: exact rotated NMS as a CUDA kernel, and the TensorRT plugin around it.

`python -m rgfl.plugins.build` compiles both into one library; `library()` says where it lies.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Literal

HERE = Path(__file__).resolve().parent
LIBRARY = HERE / "lib" / "librgfl_plugins.so"
# What TensorRT finds the plugin by, and what an ONNX node of it carries.
NAME, VERSION, NAMESPACE = "RotatedNMS", "1", ""
LINUX_ONLY = "the plugin builds on Linux only"

_TYPES: dict[str, Literal["float32", "int32"]] = {"float": "float32", "int32_t": "int32"}


def attributes() -> dict[str, Literal["float32", "int32"]]:
    """Names and types of the node's attributes; `DetectorSpec` has a field of each name."""
    table = (HERE / "tensorrt" / "rotated_nms_attributes.inc").read_text(encoding="utf-8")
    return {name: _TYPES[kind] for kind, name in re.findall(r"^RGFL_ATTRIBUTE\((\w+), (\w+),", table, re.M)}


def library() -> Path:
    """The plugin library, to be loaded by TensorRT or by `rgfl.plugins.launcher`.

    Raises:
        FileNotFoundError: it was not built on this machine, or cannot be; or it was, by an rgfl with other
            sources than this one has.
    """
    if sys.platform != "linux":
        raise FileNotFoundError(LINUX_ONLY)
    if not LIBRARY.exists():
        raise FileNotFoundError(f"{LIBRARY} is not built; run: python -m rgfl.plugins.build")
    if recorded(LIBRARY, "sources") not in ("", sources_digest()):  # "": built by other means, such as CMake
        raise FileNotFoundError(
            f"{LIBRARY} is of another rgfl, by the .json beside it; run: python -m rgfl.plugins.build, or "
            "remove that file if the library was built by other means"
        )
    return LIBRARY


def sources() -> list[Path]:
    """The files that are compiled."""
    return sorted([*HERE.glob("cuda/*.cu"), *HERE.glob("cuda/*.cpp"), *HERE.glob("tensorrt/*.cpp")])


def sources_digest() -> str:
    """Of the files that are compiled and of all that they include."""
    patterns = ("core/*.hpp", "cuda/*.hpp", "cuda/*.cuh", "tensorrt/*.hpp", "tensorrt/*.inc")
    headers = sorted(file for pattern in patterns for file in HERE.glob(pattern))
    text = hashlib.sha256()
    for file in [*sources(), *headers]:
        text.update(file.name.encode() + b"\0" + file.read_bytes())
    return text.hexdigest()[:16]


def recorded(library: Path, name: str) -> str:
    """What the record beside a library says of what it was made of; "" where none tells."""
    try:
        return str(json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
