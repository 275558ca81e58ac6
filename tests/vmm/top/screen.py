"""What a terminal of a given size shows after some output: as much of ECMA-48 as programs that fill a screen need."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCE = re.compile(
    r"\x1b(?:\[([0-9;:?<>=]*)([ -/]*[@-~])|[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[@-Z\\^_=>78a-z])"
)


class Terminal:
    """Feed it what a program writes, cut anywhere; `lines` is what is to be read."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._cells = [[" "] * columns for _ in range(rows)]
        self._row = self._column = 0
        self._rest = ""
        self.styles: set[str] = set()
        """The parameters of every SGR sequence that came."""

    def feed(self, text: str) -> None:
        text = self._rest + text
        self._rest = ""
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                found = _SEQUENCE.match(text, at)
                if found is None:
                    self._rest = text[at:]
                    return
                if found[2] is not None:
                    self._control(found[1], found[2])
                at = found.end()
            else:
                self._write(text[at])
                at += 1

    def _control(self, parameters: str, final: str) -> None:
        numbers = [int(each) if each.isdecimal() else 1 for each in parameters.split(";")]
        if final in "Hf":
            self._row = min(numbers[0], self.rows) - 1
            self._column = min(numbers[1] if len(numbers) > 1 else 1, self.columns) - 1
        elif final == "J":
            self._cells = [[" "] * self.columns for _ in range(self.rows)]
        elif final == "K":
            self._cells[self._row][self._column :] = [" "] * (self.columns - self._column)
        elif final == "m":
            self.styles.add(parameters)

    def _write(self, character: str) -> None:
        if character == "\n":
            self._row = min(self._row + 1, self.rows - 1)
        elif character == "\r":
            self._column = 0
        elif unicodedata.category(character) != "Cc":
            if self._column < self.columns:
                self._cells[self._row][self._column] = character
            self._column += 1

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._cells]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
