"""Pausing, going on and resetting: what whoever drives a machine can do to all of it."""

from __future__ import annotations

import time

import pytest

from vmm.config import make_config
from vmm.machine import Machine


def test_a_paused_machine_stands_still_and_goes_on_as_if_nothing_had_been() -> None:
    with Machine(make_config("stats", poll="1", duration="5s")) as whole, Machine(whole.config) as cut:
        whole.run()
        cut.run("2s")
        cut.pause()
        blocks, now_ns = cut.blocks, cut.now_ns
        assert cut.run() is None
        assert (cut.blocks, cut.now_ns) == (blocks, now_ns)
        cut.resume()
        cut.run()
        assert (cut.blocks, cut.now_ns, cut.console) == (whole.blocks, whole.now_ns, whole.console)


def test_the_hosts_time_does_not_pass_for_a_paused_guest() -> None:
    with Machine(make_config("stats", clock="realtime", poll="1", duration="60s")) as machine:
        machine.run(0.05)
        machine.pause()
        before_ns = machine.now_ns
        time.sleep(0.2)
        assert machine.now_ns == before_ns
        machine.resume()
        assert 0 <= machine.now_ns - before_ns < 150_000_000


def test_time_goes_on_only_when_everybody_who_stopped_it_lets_it() -> None:
    with Machine(make_config("stats", clock="realtime", duration="60s")) as machine:
        with machine.standing_still():
            machine.pause()
        before_ns = machine.now_ns
        time.sleep(0.02)
        assert machine.now_ns == before_ns
        with machine.standing_still():
            machine.resume()
            assert machine.now_ns == before_ns
        time.sleep(0.02)
        assert machine.now_ns > before_ns


def test_observers_hear_of_it_once() -> None:
    heard: list[str] = []

    class Ears:
        def on_event(self, now_ns: int, event: object) -> None:
            if getattr(event, "source", "") == "machine":
                heard.append(getattr(event, "kind", ""))

        def on_console(self, data: bytes) -> None: ...

        def on_stats(self, now_ns: int) -> None: ...

        def on_target(self, now_ns: int) -> None: ...

    with Machine(make_config("stats", duration="1s")) as machine:
        machine.observers.append(Ears())
        machine.pause()
        machine.pause()
        machine.run()
        machine.resume()
        machine.resume()
        machine.run()
    assert heard == ["paused", "resumed"]


@pytest.mark.parametrize("words", [{}, {"arch": "ppc", "devices": ["virtio-balloon-device"]}])
def test_after_a_reset_the_guest_begins_anew_and_the_balloon_keeps_its_target(words: dict[str, object]) -> None:
    with Machine(make_config("balloon", targets="48M", poll="1", duration="8s", **words)) as machine:  # type: ignore[arg-type]
        machine.run("2s")
        assert machine.balloon.actual_pages == machine.balloon.target_pages > 0
        first, now_ns, blocks = machine.console, machine.now_ns, machine.blocks
        machine.reset()
        assert machine.balloon.actual_pages == 0
        machine.run("3s")
        assert machine.now_ns > now_ns and machine.blocks > blocks
        assert machine.balloon.actual_pages == machine.balloon.target_pages > 0
        assert machine.console.startswith(first)
        again = machine.console[len(first) :]
        assert again[:64] in first
