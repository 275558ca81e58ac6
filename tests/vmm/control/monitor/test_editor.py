"""Keys become lines: what an editor makes of them, and what a terminal would show of it."""

from __future__ import annotations

import re

import pytest

from vmm.control.monitor.editor import LONGEST_LINE, Editor

WORDS = ["balloon", "system_powerdown", "system_reset"]


class Screen:
    """One line of a terminal, and a cursor in it; `lines` are those above."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line, self.column = "", 0

    def show(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[\d*[A-Z]|.", text, re.DOTALL):
            if piece == "\n":
                self.lines.append(self.line)
                self.line, self.column = "", 0
            elif piece == "\r":
                self.column = 0
            elif piece == "\x1b[K":
                self.line = self.line[: self.column]
            elif piece.startswith("\x1b["):
                assert piece[-1] == "D", piece
                self.column -= int(piece[2:-1])
            else:
                self.line = self.line[: self.column] + piece + self.line[self.column + 1 :]
                self.column += 1


def complete(line: str) -> tuple[int, list[str]]:
    last = line.split(" ")[-1]
    return len(last), [word for word in WORDS if word.startswith(last)]


def editor(*, echoes: bool = True) -> tuple[Editor, Screen]:
    screen = Screen()
    made = Editor("> ", screen.show, complete, echoes=echoes)
    made.start()
    return made, screen


def typed(made: Editor, keys: bytes) -> list[str]:
    return [line for line in map(made.put, keys) if line is not None]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (b"info", "info"),
        (b"infp\x7fo", "info"),
        (b"infp\x08o", "info"),
        (b"\x7f\x08x", "x"),
        (b"one two\x15three", "three"),
        (b"one two\x17three", "one three"),
        (b"one two  \x17\x17three", "three"),
        (b"nfo\x01i\x05!", "info!"),
        (b"ino\x1b[Df", "info"),
        (b"ino\x1bODf\x1b[C!", "info!"),
        (b"ino\x02f\x06!", "info!"),
        (b"xinfo\x1b[H\x1b[3~", "info"),
        (b"xinfo\x1b[1~\x04\x1b[F!", "info!"),
        (b"info xyz\x02\x02\x02\x0b", "info "),
        (b"\x1b[D\x1b[D\x1b[C\x1b[Ca\x1b[3~", "a"),
        (b"one\x03two", "two"),
        (b"a\xc3\xa4\x00\x1b[5~b\x1b[1;5Cc", "abc"),
        (b"ba\t", "balloon "),
        (b"sy\t", "system_"),
        (b"help sys\tr\t", "help system_reset "),
        (b"nothing\t", "nothing"),
        (b"info\x0c", "info"),
    ],
)
def test_keys_and_the_line_that_they_make(keys: bytes, line: str) -> None:
    made, screen = editor()
    assert typed(made, keys) == []
    assert screen.line == f"> {line}", "what is shown is what is there"
    assert typed(made, b"\r") == [line]
    assert (screen.lines[-1], screen.line) == (f"> {line}", "")


def test_a_return_is_one_end_of_line_however_it_is_sent() -> None:
    made, _ = editor()
    assert typed(made, b"a\rb\nc\r\nd\r\r\n\n") == ["a", "b", "c", "d", "", ""]


def test_what_fits_is_listed_when_it_is_not_clear() -> None:
    made, screen = editor()
    typed(made, b"system_\t")
    assert screen.lines == ["> system_", "system_powerdown  system_reset"]
    assert screen.line == "> system_"


def test_the_history_goes_back_and_forth() -> None:
    made, screen = editor()
    assert typed(made, b"one\rtwo\rtwo\r  \rthr") == ["one", "two", "two", "  "]
    shown = []
    for keys in (b"\x1b[A", b"\x1b[A", b"\x10", b"\x1b[B", b"\x0e", b"\x1b[B"):
        typed(made, keys)
        shown.append(screen.line)
    assert shown == ["> two", "> one", "> one", "> two", "> thr", "> thr"]
    assert typed(made, b"\x1b[A\x1b[A!\r\x1b[A\r") == ["one!", "one!"]


def test_a_line_has_an_end() -> None:
    made, _ = editor()
    (line,) = typed(made, b"x" * (LONGEST_LINE + 100) + b"\r")
    assert len(line) == LONGEST_LINE
    (line,) = typed(made, b"\x1b[" + b"1" * 100 + b"y\r")
    assert len(line) < 100


def test_without_echo_only_prompts_are_shown() -> None:
    made, screen = editor(echoes=False)
    assert typed(made, b"balx\x7floon\x1b[A\t\r") == ["balloon "]
    made.start()
    assert (screen.lines, screen.line) == ([], "> > ")
