"""What a command takes, as a table of kinds, and how a line is read by it; the complaints are QEMU's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vmm.control.monitor.complaints import Complaint
from vmm.control.monitor.expressions import Registers, evaluate

Kind = Literal["format", "number", "integer", "mebibytes", "word", "words", "flags"]
_MIB = 1 << 20
_COUNT = re.compile(r"\d*")
_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8, "L": 8}
_FORMATS = "oduxic"


@dataclass(frozen=True, slots=True)
class Argument:
    """`format` is /NFx, `number` an expression, `integer` one of 32 bits without a sign, `mebibytes` one that is no
    less than 0 and counted in MiB, `word` what ends at a space, `words` all the rest, `flags` any of `letters`, each
    once and behind a "-"."""

    name: str
    kind: Kind
    optional: bool = False
    letters: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """How memory is shown: `count` items of `size` bytes in `format`, one of o d u x i c.  A size of 0 is for
    instructions, whose size is the processor's."""

    count: int
    format: str
    size: int


class Reader:
    """Reads the arguments of one monitor's lines: the last format is the next one's, as far as that does not say."""

    def __init__(self, registers: Callable[[], Registers]) -> None:
        self._registers = registers
        self._format, self._size = "x", 4

    def read(self, text: str, arguments: Sequence[Argument], name: str) -> dict[str, Any]:
        """The values of `arguments` in `text`, those that are not there left out.  Complaint when it does not fit;
        `name` is the command's in it."""
        values: dict[str, Any] = {}
        for argument in arguments:
            text = text.lstrip()
            value, text = self._take(argument, text, name)
            if value is not None:
                values[argument.name] = value
        if text.strip():
            raise Complaint(f"{name}: extraneous characters at the end of line")
        return values

    def _take(self, argument: Argument, text: str, name: str) -> tuple[Any, str]:
        if argument.kind == "format":
            return self._take_format(text)
        if argument.kind == "flags":
            return _take_flags(argument.letters, text, name)
        if argument.optional and not text:
            return None, text
        if argument.kind in ("word", "words"):
            return _take_word(argument, text, name)
        value, rest = evaluate(text, self._registers())
        if argument.kind == "integer" and value >> 32:
            raise Complaint(f"'{name}' has failed: integer is for 32-bit values")
        if argument.kind == "mebibytes":
            if value < 0:
                raise Complaint("enter a positive value")
            value *= _MIB
        return value, rest

    def _take_format(self, text: str) -> tuple[Format, str]:
        if not text.startswith("/"):
            return Format(1, self._format, 0 if self._format == "i" else self._size), text
        found = _COUNT.match(text, 1)
        digits = found.group() if found is not None else ""
        position, format_, size = 1 + len(digits), "", 0
        while (letter := text[position : position + 1]) and letter in (*_FORMATS, *_SIZES):
            format_ = letter if letter in _FORMATS else format_
            size = _SIZES.get(letter, size)
            position += 1
        if letter and not letter.isspace():
            raise Complaint(f"invalid char in format: '{letter}'")
        self._format = format_ or self._format
        if self._format == "i":
            size = 0
        else:
            size = self._size = size or self._size
        return Format(int(digits) if digits else 1, self._format, size), text[position:]


def _take_flags(letters: str, text: str, name: str) -> tuple[str | None, str]:
    found = ""
    while re.match(r"-[A-Za-z]", text):
        if text[1] not in letters:
            raise Complaint(f"{name}: unsupported option -{text[1]}")
        found += text[1]
        text = text[2:].lstrip()
    return found or None, text


def _take_word(argument: Argument, text: str, name: str) -> tuple[str, str]:
    if not text:
        raise Complaint(f"{name}: string expected")
    if argument.kind == "words":
        return text, ""
    word, _, rest = text.partition(" ")
    return word, rest
