"""The processes of one training, as torchrun starts them. Without torchrun there is one: nothing to do here.

Two rules keep them together. What comes from outside (a signal, the clock, a file that cannot be read) is
agreed on before anybody acts on it, so that all ranks leave the same step by the same road. And only the
first rank writes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from rgfl.errors import UserError

T = TypeVar("T")

# Of an agreement: the others wait while one evaluates or reads. Gradients keep torch's limit.
LONGEST_WAIT = datetime.timedelta(hours=6)


class SharedError(UserError):
    """An error of some ranks, raised on all of them; the first tells it."""


def local_rank() -> int:
    """Which process of this machine this is."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def first_rank() -> bool:
    """Whether this process is the one that writes; before or after `Ranks` too."""
    return not launched() or os.environ["RANK"] == "0"


def launched() -> bool:
    """Whether this process is one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Ranks:
    """All processes of this run: `size` of them, this one being number `rank`.

    A context manager: the group is left at its end.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.local_size = 0, 1, 1
        self._control: Any = None
        if device.type == "cuda":
            # Of one process too: what asks for "the GPU", as pinned memory does, would else open the first.
            torch.cuda.set_device(device)
        if not launched():
            return
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        # Agreements are about numbers in main memory: through gloo they do not wait for the GPU.
        self._control = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error of its own a rank just ends: leaving in order would wait for those that go on.
        if not self.alone and (kind is None or issubclass(kind, SharedError)):
            dist.destroy_process_group()

    @property
    def alone(self) -> bool:
        """Whether this process is the whole run."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def lost(self, error: Exception) -> bool:
        """Whether an error says that another process has gone."""
        return not self.alone and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This rank's part of the items: every `size`-th."""
        return items[self.rank :: self.size]

    def greatest(self, *values: int) -> list[int]:
        """Of each value the greatest of all ranks'."""
        if self.alone:
            return list(values)
        numbers = torch.tensor(values)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._control)
        return numbers.tolist()

    def any(self, condition: bool) -> bool:
        """Whether it holds on some rank."""
        return bool(self.greatest(int(condition))[0])

    def gather(self, value: T) -> list[T]:
        """All ranks' values, in their order; for what is small or rare."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def merge(self, values: dict[str, T]) -> dict[str, T]:
        """All ranks' entries on the first rank, and on the others their own."""
        if self.alone:
            return values
        parts: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(values, parts, group=self._control)
        return values if parts is None else {name: value for part in parts for name, value in part.items()}

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in the place of the values and on their device."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the ranks, on the device of the values."""
        return self.total(values) / self.size

    def copy_buffers(self, model: nn.Module) -> None:
        """The first rank's buffers to all: BatchNorm's statistics differ where nothing joins them."""
        if not self.alone:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def together(self, errors: tuple[type[Exception], ...]) -> Iterator[None]:
        """A block that succeeds on all ranks or on none: all must come here.

        Raises:
            SharedError: on every rank, if one of `errors` was raised on any. A run of one process raises
                the error itself.
        """
        if self.alone:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except errors as caught:
            error = caught
        if not self.any(error is not None):
            return
        lines = self.gather("" if error is None else str(error) or type(error).__name__)
        if all(lines):
            told = list(dict.fromkeys(lines))
        else:
            told = [f"process {rank}: {line}" for rank, line in enumerate(lines) if line]
        raise SharedError("; ".join(told)) from error

    def expect_equal(self, values: Mapping[str, object]) -> None:
        """Every rank must have come to the same.

        Raises:
            SharedError: with the first name whose value differs, and what to do.
        """
        for name in values:
            found = self.gather((socket.gethostname(), values[name]))
            for rank, (host, value) in enumerate(found):
                if value != found[0][1]:
                    both = f" ({value} and {found[0][1]})" if len(f"{value}") < 40 else ""
                    raise SharedError(
                        f"process {rank} on {host} has another {name} than process 0 on {found[0][0]}"
                        f"{both}; all need the same flags, --data "
                        "and --out, on a file system that every machine sees"
                    )
