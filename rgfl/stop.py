"""When a training stops before its end: Ctrl-C, SIGTERM, a terminal that hangs up, or its time is up."""

from __future__ import annotations

import math
import signal
import time

TIME_IS_UP = int(signal.NSIG)  # in place of a signal's number, and none
HANG_UP = getattr(signal, "SIGHUP", None)  # Windows has none


def reason(halt: int) -> str:
    return "--max-minutes" if halt == TIME_IS_UP else signal.Signals(halt).name


class Stop:
    """Whether to stop after this step: a signal (a second one stops at once), or the time is up.

    SIGHUP is ignored where the run was started to outlive its terminal (nohup).
    """

    def __init__(self, max_minutes: float, started: float) -> None:
        self.signal, self._received = 0, 0.0
        self._until = started + 60 * max_minutes if max_minutes else math.inf
        self._before = {}
        numbers = [signal.SIGINT, signal.SIGTERM]
        if HANG_UP is not None and signal.getsignal(HANG_UP) != signal.SIG_IGN:
            numbers.append(HANG_UP)
        for number in numbers:
            try:
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not in the main thread: the caller handles signals
                break

    def _on_signal(self, number: int, _frame: object) -> None:
        # One Ctrl-C may come twice: from the terminal, and from torchrun, which passes it on.
        if self.signal and time.monotonic() > self._received + 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self._received = number, time.monotonic()

    def now(self) -> int:
        """0 to go on, the signal, or `TIME_IS_UP`."""
        return self.signal or (TIME_IS_UP if time.monotonic() > self._until else 0)

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
