"""The two clocks of a machine, as strategies for "what time is it", "how far may the CPU run" and "nothing to do".

With `VirtualClock` time is a function of the blocks that the CPU executed, and an idle guest jumps to its next
deadline: two runs are identical to the byte, however fast the host is and however often the run is stopped.  With
`RealtimeClock` time is the host's, from the machine's start on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Protocol

from devices.state import TIME_NS, State, Stateful, Table

BLOCK_NS = 10  # guest nanoseconds a block; near what a block costs on a current host
SLICE_BLOCKS = 1_000_000  # how long the CPU may run before the machine looks up (about 10 ms of wall time)
REALTIME_SLICE_BLOCKS = 50_000
LONGEST_SLEEP_S = 0.02
LONGEST_WAIT_S = 1.0

Wait = Callable[[float], None]  # sleeps that many seconds at most; may come back earlier


class Clock(Protocol):
    """`blocks` is the CPU's count of executed blocks; times are guest nanoseconds since power-on."""

    def now_ns(self, blocks: int) -> int: ...

    def ns_of_blocks(self) -> tuple[int, int] | None:
        """`now_ns` as (ns a block, ns at block 0), valid until the next `idle_until`; None if it is no such thing."""
        ...

    def budget(self, blocks: int, deadline_ns: int | None) -> int:
        """How many blocks to run, at least 1, so as not to pass the deadline by more than a block."""
        ...

    def save_state(self) -> State: ...

    def check_state(self, saved: Any, where: str) -> None: ...

    def restore_state(self, saved: Any) -> None: ...

    def standing_still(self) -> AbstractContextManager[None]:
        """While this is entered the time is what it was then: the host does something that the guest shall not
        notice."""
        ...

    def idle_until(self, blocks: int, deadline_ns: int | None, wait: Wait = time.sleep) -> None:
        """The CPU sleeps: let the time come nearer to the deadline.  None: only what `wait` waits for can wake it."""
        ...

    def pause(self) -> None:
        """Stand still from now on, although nothing runs."""
        ...

    def resume(self) -> None:
        """Go on from where it stood; once for each `pause`."""
        ...


class VirtualClock(Stateful):
    """BLOCK_NS a block, plus what idle guests skipped."""

    STATE: ClassVar[Table] = {"skipped_ns": TIME_NS}

    def __init__(self) -> None:
        self.skipped_ns = 0

    def now_ns(self, blocks: int) -> int:
        return blocks * BLOCK_NS + self.skipped_ns

    def ns_of_blocks(self) -> tuple[int, int] | None:
        return BLOCK_NS, self.skipped_ns

    def standing_still(self) -> AbstractContextManager[None]:
        return nullcontext()

    def budget(self, blocks: int, deadline_ns: int | None) -> int:
        if deadline_ns is None:
            return SLICE_BLOCKS
        remaining_ns = deadline_ns - self.now_ns(blocks)
        return min(max(-(-remaining_ns // BLOCK_NS), 1), SLICE_BLOCKS)

    def idle_until(self, blocks: int, deadline_ns: int | None, wait: Wait = time.sleep) -> None:
        if deadline_ns is None:
            wait(LONGEST_WAIT_S)
        else:
            self.skipped_ns += max(deadline_ns - self.now_ns(blocks), 0)

    def pause(self) -> None:
        """Nothing to do: it stands still whenever the CPU does."""

    def resume(self) -> None:
        """The same."""


class RealtimeClock(Stateful):
    """The host's monotonic clock, zero at power-on."""

    STATE: ClassVar[Table] = {"elapsed_ns": TIME_NS}

    def __init__(self) -> None:
        self._start_ns = time.monotonic_ns()
        self._standing_ns: int | None = None
        self._stops = 0  # of which each must be taken back before it goes on

    @property
    def elapsed_ns(self) -> int:
        """Guest time; setting it lets the guest not notice how long its state was saved."""
        return time.monotonic_ns() - self._start_ns if self._standing_ns is None else self._standing_ns

    @elapsed_ns.setter
    def elapsed_ns(self, elapsed_ns: int) -> None:
        if self._standing_ns is not None:
            self._standing_ns = elapsed_ns
        self._start_ns = time.monotonic_ns() - elapsed_ns

    def pause(self) -> None:
        self._standing_ns = self.elapsed_ns
        self._stops += 1

    def resume(self) -> None:
        self._stops -= 1
        if not self._stops:
            self._start_ns = time.monotonic_ns() - self.elapsed_ns
            self._standing_ns = None

    def now_ns(self, blocks: int) -> int:
        return self.elapsed_ns

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def ns_of_blocks(self) -> tuple[int, int] | None:
        return None

    def budget(self, blocks: int, deadline_ns: int | None) -> int:
        if deadline_ns is None:
            return REALTIME_SLICE_BLOCKS
        remaining_ns = deadline_ns - self.now_ns(blocks)
        return min(max(remaining_ns // BLOCK_NS, 1), REALTIME_SLICE_BLOCKS)

    def idle_until(self, blocks: int, deadline_ns: int | None, wait: Wait = time.sleep) -> None:
        seconds = LONGEST_WAIT_S if deadline_ns is None else (deadline_ns - self.now_ns(blocks)) / 1e9
        if seconds > 0:
            # Nothing ends time.sleep, so it must be short for an interrupt from the keyboard to be noticed.
            wait(min(seconds, LONGEST_SLEEP_S) if wait is time.sleep else seconds)
