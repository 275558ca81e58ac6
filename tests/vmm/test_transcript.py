"""What is kept of a guest's console: its newest part, and how much came before."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmm
from devices.errors import ConfigError
from vmm import transcript
from vmm.transcript import KEPT_BYTES, Transcript


@given(st.lists(st.binary(max_size=30)), st.integers(1, 20))
def test_it_keeps_the_newest_and_counts_the_rest(pieces: list[bytes], kept_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcript, "KEPT_BYTES", kept_bytes)
        made, everything = Transcript(), b""
        for piece in pieces:
            made.add(piece)
            everything += piece
            assert bytes(made) == everything[-kept_bytes:]
            assert made.dropped_bytes == max(len(everything) - kept_bytes, 0)


def test_its_state_goes_to_another_one() -> None:
    first, second = Transcript(), Transcript()
    first.add(b"x" * KEPT_BYTES)
    first.add(b"end")
    state = first.save_state()
    second.check_state(state, "it")
    second.restore_state(state)
    assert bytes(second) == bytes(first) and second.dropped_bytes == 3
    second.add(b"more")
    assert first.save_state() == state
    with pytest.raises(ConfigError, match=r"it\.kept must be at most"):
        second.check_state({"kept": b"x" * (KEPT_BYTES + 1), "dropped_bytes": 0}, "it")


def test_a_machine_keeps_so_much_of_its_console_and_says_so() -> None:
    """Whoever listens gets every byte all the same."""
    with vmm.boot("hello", memory="4M") as machine, pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcript, "KEPT_BYTES", 100)
        heard = bytearray()

        class Listener:
            def on_console(self, data: bytes) -> None:
                heard.extend(data)

            def on_event(self, *_: object) -> None: ...

            def on_stats(self, *_: object) -> None: ...

            def on_target(self, *_: object) -> None: ...

        machine.observers.append(Listener())
        machine.run()
        report = machine.report()
        assert len(heard) > 100 and machine.console == heard[-100:]
        assert machine.console_dropped_bytes == report["console_dropped_bytes"] == len(heard) - 100
        assert report["console"] == heard[-100:].decode()
