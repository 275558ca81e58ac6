"""Where a guest's two consoles go: bytes as they are, and whole lines where both are on one stream."""

from __future__ import annotations

import io

from vmm.outputs import LONGEST_LINE_BYTES, LineSink, SerialSink


def test_a_line_is_written_when_it_is_whole_and_the_last_one_at_the_end() -> None:
    out = io.BytesIO()
    sink = LineSink(out, "it")
    sink.on_console(b"on")
    assert out.getvalue() == b""
    sink.on_console(b"e\ntwo\nth\xffr")
    assert out.getvalue() == b"one\ntwo\n"
    sink.finish()
    sink.finish()
    assert out.getvalue() == b"one\ntwo\nth\xffr\n"


def test_a_line_without_an_end_is_not_kept_without_bound() -> None:
    out = io.BytesIO()
    sink = LineSink(out, "it")
    for _ in range(3 * LONGEST_LINE_BYTES):
        sink.on_console(b"x")
    assert len(out.getvalue()) >= 2 * LONGEST_LINE_BYTES
    assert all(len(line) <= LONGEST_LINE_BYTES + 1 for line in out.getvalue().splitlines())


def test_a_line_never_begins_within_one_of_the_console_beside_it() -> None:
    out = io.BytesIO()
    console = SerialSink(out, "it")
    debug = LineSink(out, "it", console)
    debug.on_console(b"a\n")
    console.on_console(b"login: ")
    debug.on_console(b"b")
    debug.on_console(b"\nc\nd")
    console.on_console(b"root\n")
    debug.on_console(b"\n")
    assert out.getvalue() == b"a\nlogin: \nb\nc\nroot\nd\n"
