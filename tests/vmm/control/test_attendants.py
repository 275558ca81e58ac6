"""Waiting with several: whoever has something to do first ends it."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from vmm.control.attendants import Attendants


class Someone:
    """An attendant that waits for what a test says."""

    can_wake = True

    def __init__(self, awaited: Iterable[tuple[int, int]] | None = (), due_s: float | None = None) -> None:
        self._awaited = awaited
        self.due_s = due_s

    def serve(self) -> None: ...

    def awaited(self) -> Iterable[tuple[int, int]] | None:
        return self._awaited


def waited_s(*attendants: Someone, seconds: float = 0.9) -> float:
    machine: Any = SimpleNamespace(attendants=None)
    with Attendants(machine, *attendants) as together:
        start_s = time.monotonic()
        together.wait(seconds)
        return time.monotonic() - start_s


def test_it_waits_as_long_as_it_shall_and_not_longer_than_anybody_can() -> None:
    assert 0.09 < waited_s(Someone(), seconds=0.1) < 0.8


def test_what_is_due_sooner_ends_it() -> None:
    assert waited_s(Someone(), Someone(due_s=time.monotonic() + 0.05)) < 0.8
    assert waited_s(Someone(due_s=time.monotonic() - 5)) < 0.8


def test_who_has_something_to_do_already_is_not_waited_for() -> None:
    assert waited_s(Someone(), Someone(awaited=None)) < 0.8


def test_what_comes_ends_it() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    assert waited_s(Someone([(reader, select.POLLIN)])) < 0.8
    os.close(reader)
    os.close(writer)


def test_a_signal_ends_it() -> None:
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        assert waited_s(Someone()) < 0.8
    finally:
        signal.signal(signal.SIGALRM, before)
