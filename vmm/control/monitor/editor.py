"""A line made of keys, as on a terminal: editing, history and completion, without a terminal at hand.

Keys come in as bytes, cut anywhere; what shall be shown goes to `show`.  Only ASCII is taken: nothing that the monitor
understands has anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

LONGEST_LINE = 4095
LONGEST_HISTORY = 64
COLUMNS = 80

Complete = Callable[[str], tuple[int, list[str]]]
"""For the last word of a line: how much of it is there, and what it may be."""

_ESCAPE = "\x1b"
_CLEAR_TO_END = "\x1b[K"
_CONTROL = {
    "\x01": "home",
    "\x02": "left",
    "\x03": "abandon",
    "\x05": "end",
    "\x06": "right",
    "\x08": "rub-out",
    "\x7f": "rub-out",
    "\t": "complete",
    "\x0b": "kill",
    "\x0c": "redraw",
    "\x0e": "next",
    "\x10": "previous",
    "\x15": "kill-back",
    "\x17": "rub-out-word",
    "\x04": "delete",
}
_FINAL = {"A": "previous", "B": "next", "C": "right", "D": "left", "H": "home", "F": "end"}
_SEQUENCES = {
    **{lead + final: what for lead in "[O" for final, what in _FINAL.items()},
    **{f"[{number}~": what for number, what in ((1, "home"), (3, "delete"), (4, "end"), (7, "home"), (8, "end"))},
}


class Editor:
    """The line behind `prompt`.  Without `echoes` nothing is shown but prompts: whoever types sees it already."""

    def __init__(self, prompt: str, show: Callable[[str], None], complete: Complete, *, echoes: bool) -> None:
        self._prompt = prompt
        self._show = show
        self._complete = complete
        self._echoes = echoes
        self._line, self._cursor = "", 0
        self._history: list[str] = []
        self._place = 0  # in the history; its length: the new line
        self._new = ""  # the new line, while an older one is looked at
        self._sequence = ""
        self._was_return = False

    def start(self) -> None:
        """Show the prompt, and what of a line there is."""
        self._show(f"{self._prompt}{self._line if self._echoes else ''}")
        self._back(len(self._line) - self._cursor)

    def put(self, byte: int) -> str | None:
        """One key.  The line, if it is whole now."""
        key = chr(byte)
        after_return, self._was_return = self._was_return, key == "\r"
        if key in "\r\n":
            return None if key == "\n" and after_return else self._enter()
        if self._sequence:
            self._continue_sequence(key)
        elif key == _ESCAPE:
            self._sequence = key
        elif key in _CONTROL:
            self._do(_CONTROL[key])
        elif " " <= key <= "~":
            self._insert(key)
        return None

    def _enter(self) -> str:
        line = self._line
        if self._echoes:
            self._show("\n")
        if line.strip() and line not in self._history[-1:]:
            self._history = [*self._history[1 - LONGEST_HISTORY :], line]
        self._line, self._cursor, self._place, self._sequence = "", 0, len(self._history), ""
        return line

    def _continue_sequence(self, key: str) -> None:
        """An escape sequence of ECMA-48: its final byte ends it."""
        self._sequence += key
        inner = self._sequence[1:]
        if inner in ("[", "O") or (inner[0] == "[" and not "@" <= key <= "~"):
            if len(inner) > 16:
                self._sequence = ""
            return
        self._sequence = ""
        if inner in _SEQUENCES:
            self._do(_SEQUENCES[inner])

    # -- editing ---------------------------------------------------------------------------------------------------

    def _insert(self, text: str) -> None:
        text = text[: LONGEST_LINE - len(self._line)]
        at_end = self._cursor == len(self._line)
        self._line = self._line[: self._cursor] + text + self._line[self._cursor :]
        self._cursor += len(text)
        if at_end:
            self._echo(text)
        else:
            self._redraw()

    def _do(self, what: str) -> None:
        before, after = self._line[: self._cursor], self._line[self._cursor :]
        match what:
            case "home":
                self._change(self._line, 0)
            case "end":
                self._change(self._line, len(self._line))
            case "left":
                self._change(self._line, max(self._cursor - 1, 0))
            case "right":
                self._change(self._line, min(self._cursor + 1, len(self._line)))
            case "rub-out":
                self._change(before[:-1] + after, max(self._cursor - 1, 0))
            case "delete":
                self._change(before + after[1:], self._cursor)
            case "kill":
                self._change(before, self._cursor)
            case "kill-back":
                self._change(after, 0)
            case "rub-out-word":
                kept = before.rstrip(" ")
                kept = kept[: kept.rfind(" ") + 1]
                self._change(kept + after, len(kept))
            case "previous" | "next":
                self._recall(self._place + (1 if what == "next" else -1))
            case "complete":
                self._complete_word(before, after)
            case "redraw":
                self._redraw()
            case "abandon":
                self._echo("\n")
                self._line, self._cursor, self._place = "", 0, len(self._history)
                self.start()

    def _change(self, line: str, cursor: int) -> None:
        self._line, self._cursor = line, cursor
        self._redraw()

    def _recall(self, place: int) -> None:
        """Show another line of the history, or the new one again."""
        if not 0 <= place <= len(self._history):
            return
        if self._place == len(self._history):
            self._new = self._line
        self._place = place
        line = self._new if place == len(self._history) else self._history[place]
        self._change(line, len(line))

    def _complete_word(self, before: str, after: str) -> None:
        """As far as it is clear; where it is not, show what there is."""
        length, words = self._complete(before)
        if not words:
            return
        more = _beginning(words)[length:] + (" " if len(words) == 1 else "")
        if more or len(words) == 1:
            self._insert(more)
        elif self._echoes:
            self._show("\n" + "".join(f"{line}\n" for line in _columns(words)))
            self.start()

    # -- showing ---------------------------------------------------------------------------------------------------

    def _echo(self, text: str) -> None:
        if self._echoes:
            self._show(text)

    def _redraw(self) -> None:
        self._echo(f"\r{self._prompt}{self._line}{_CLEAR_TO_END}")
        self._back(len(self._line) - self._cursor)

    def _back(self, columns: int) -> None:
        if columns > 0:
            self._echo(f"\x1b[{columns}D")


def _beginning(words: Sequence[str]) -> str:
    """The characters with which all of them begin."""
    first, last = min(words), max(words)
    same = next((at for at, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:same]


def _columns(words: list[str]) -> Iterable[str]:
    """As many beside each other as fit."""
    width = max(map(len, words)) + 2
    each = max(COLUMNS // width, 1)
    for first in range(0, len(words), each):
        yield "".join(f"{word:<{width}}" for word in words[first : first + each]).rstrip()
