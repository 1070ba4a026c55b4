"""One process at a time writes into a folder, or a file."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows: there nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

from rgfl.errors import UserError

LOCK = ".lock"


class FolderInUse(UserError):
    """Another process writes into the folder or file; the message says which."""


def lock_folder(folder: Path) -> TextIO:
    """The folder's lock file; see `lock_file`."""
    return lock_file(folder / LOCK, folder, "--out")


def lock_file(path: Path, place: Path, flag: str) -> TextIO:
    """The lock file at `path`, this process's until it closes it or ends, in whatever way.

    It keeps other processes out; a second time POSIX lets the same process in.

    Args:
        place: what it guards, named by `flag`.

    Raises:
        FolderInUse: another process has it.
        OSError: it cannot be written, or is a link, which might lead to any file.
    """
    lock = open(path, "a+", opener=_no_link)  # noqa: SIM115
    if fcntl is not None:
        try:
            # POSIX's lock, not flock's: processes that prepare tiles and outlive a killed run do not hold it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise FolderInUse(
                f"{flag} {place}: {holder} writes into it; wait for its end, or give another {flag}"
            ) from error
        except OSError:
            pass  # a file system without locks
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
