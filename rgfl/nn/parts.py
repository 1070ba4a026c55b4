"""Parts of one's own in a detector: CONTRIBUTING.md has an example. No torch, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any


@dataclass(slots=True)
class Parts:
    """What every detector built from now on takes in place of a part of ours; None: ours.

    A checkpoint keeps the names of these, never their code. `neck` and `head` are classes, `losses` is a
    function; each is called as the one that it replaces.
    """

    neck: Callable[..., Any] | None = None  # for rgfl.nn.neck.FeaturePyramid
    head: Callable[..., Any] | None = None  # for rgfl.nn.head.Head
    losses: Callable[..., Any] | None = None  # for rgfl.nn.loss.detection_losses; only training needs it

    def names(self) -> dict[str, str]:
        """Those that are not ours: `{"neck": "my_neck.Bilinear"}`."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _name(part) for name, part in own.items() if part}


def _name(part: Any) -> str:
    """`my_neck.Bilinear`; of a callable without a name, such as functools.partial's, that of its class."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}.{named.__qualname__}"


PARTS = Parts()
