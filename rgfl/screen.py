"""Standard output and standard error of a command whose work outlives them.

The reader of a pipe may end, a disk may be full, a terminal may hang up.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class Lasting:
    """A text stream that is silent from its first error on; what cannot be encoded becomes "?".

    Attributes:
        error: why it is silent, or "".
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.error = "" if stream else "closed"  # as `>&-` leaves it
        self._stream = stream or io.StringIO()
        with contextlib.suppress(AttributeError, OSError, ValueError):  # a notebook's stream, a closed one
            # By lines into files and pipes too: what is said there is seen at once.
            self._stream.reconfigure(errors="replace", line_buffering=True)  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        self._unless_broken(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._unless_broken(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _unless_broken(self, act: Callable[..., object], *arguments: str) -> None:
        if self.error:
            return
        try:
            act(*arguments)
        except (OSError, ValueError) as error:
            self.error = getattr(error, "strerror", None) or str(error)
            # What is buffered would fail again at the interpreter's end, and change its exit code.
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """Within the block no error of sys.stdout or sys.stderr reaches whoever writes to it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ours = Lasting(before[0]), Lasting(before[1])
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
        sys.stdout, sys.stderr = before
