"""Worker processes: how many there may be, and their end when one of them or their parent is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity where the system has one, else the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each(work: Callable[[Job], Done], jobs: Sequence[Job], workers: int) -> Iterator[Done]:
    """What `work` makes of the jobs, each as it is finished; with one worker or job in this process.

    Raises:
        ChildProcessError: a worker was killed. What was yielded is finished.
    """
    if workers <= 1 or len(jobs) <= 1:
        yield from map(work, jobs)
        return
    context = multiprocessing.get_context("spawn")  # forking would copy locks: OpenCV's, torch's
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start_worker)
    try:
        for future in as_completed([pool.submit(work, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker was killed, most likely because memory ran out; run again with fewer --workers "
            "(what is finished is kept)"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    import cv2  # late: whoever asks for the number of cores needs it not

    cv2.setNumThreads(1)
    warn_in_lines()
    end_with_parent()


def warn_in_lines() -> None:
    """Let each warning of this worker be one line, below the bar that its parent draws."""
    warnings.formatwarning = lambda message, *_: f"\nwarning: {message}\n"


def end_with_parent() -> None:
    """Let this worker end when its parent does, even while it waits or hangs."""

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
