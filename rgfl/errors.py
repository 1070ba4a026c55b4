"""What a user can put right: one line on stderr and exit status 2, never a traceback."""

from __future__ import annotations

import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from rgfl import atomic


class UserError(ValueError):
    """What a user can put right: the message is all they need, so commands print it without a traceback."""


class ModelError(UserError):
    """The file is no model, or not one that this command can run."""


class InputError(UserError):
    """Images, labels or flags that do not fit together."""


class TrainingError(UserError):
    """The run cannot go on; one line that says why and what to do."""


# What a command says on Ctrl-C that goes on where it stopped.
GOES_ON = "stopped; the same command goes on from here"

# What to install for what an installation may lack, by the name that is imported. An extra only where it must
# be: on a machine that has a PyTorch of its own, pip would replace it.
INSTALL = {
    "torch": "rgfl[train]",
    "timm": "rgfl[train]",
    "matplotlib": "matplotlib",
    "onnx": "rgfl[export]",
    "onnx_graphsurgeon": "rgfl[export]",
    "onnxruntime": "onnxruntime",
    "onnxscript": "rgfl[export]",
}


def run(program: str, command: Callable[[], int], interrupted: str = "interrupted") -> int:
    """Exit status of `command`; 2 and one line where the user can put it right, 130 on Ctrl-C.

    SIGTERM ends it like sys.exit, so that temporary files are removed.
    """
    warnings.formatwarning = lambda message, *_: printable(f"{program}: warning: {message}\n")
    try:
        with _termination_exits():
            return command()
    except KeyboardInterrupt:
        print(f"\n{program}: {interrupted}", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in INSTALL:
            raise
        what, remedy = "not installed", f"'{INSTALL[name]}'"
        if name != error.name and find_spec(name):  # a part of it that others of its versions have
            what, remedy = f"too old, or does not fit what is installed beside it ({error})", f"-U {name}"
        print(f"{program}: error: {name} is {what}: pip install {remedy}", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        print(printable(f"{program}: error: {told(error)}"), file=sys.stderr)
        return 2


@contextmanager
def _termination_exits() -> Iterator[None]:
    """SIGTERM raises SystemExit in this block: left alone it ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def one_line(error: Exception) -> str:
    """The message without line breaks; an OSError says which file and why."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def told(error: Exception) -> str:
    """The message with its line breaks; an OSError in one line."""
    return one_line(error) if isinstance(error, OSError) else str(error)


def printable(text: str) -> str:
    r"""The text with control characters as \x1b and the like, but for tabs and line breaks: a terminal would
    obey them, and names in files may hold any."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def write_cache(path: Path, data: bytes, cost: str) -> None:
    """What saves time next time: where it cannot be written, that is a warning of the `cost`."""
    try:
        atomic.write_bytes(path, data)
    except OSError as error:
        warnings.warn(f"{cost}: {one_line(error)}", stacklevel=3)
