"""The numbers that commands take: QEMU's expressions, in 64 bits with a sign.

    sum      = logic { ("+" | "-") logic }
    logic    = product { ("&" | "|" | "^") product }
    product  = unary { ("*" | "/" | "%") unary }
    unary    = ("+" | "-" | "~") unary | "(" sum ")" | "'" character "'" | "$" register | number

So `&`, `|` and `^` bind more tightly than `+` and `-`, unlike in C.  A number is decimal, hexadecimal after 0x, octal
after 0.  Division cuts towards zero.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vmm.control.monitor.complaints import Complaint

DEEPEST = 100  # of parentheses and signs; QEMU has no such limit, and a stack that does
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*")
_REGISTER = re.compile(r"[A-Za-z0-9_.]*")
_SPACE = re.compile(r"\s*")
_MASK = (1 << 64) - 1

Registers = Callable[[str], int | None]
"""The value of the register of that name, None where there is none."""


def signed(value: int) -> int:
    """The 64 low bits of `value` as a number with a sign."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def evaluate(text: str, registers: Registers) -> tuple[int, str]:
    """The value at the beginning of `text`, and what follows it.  Complaint when there is none."""
    parser = _Parser(text, registers)
    value = parser.sum()
    return value, text[parser.position :]


class _Parser:
    """Reads `text` from `position` on, which is never at a space."""

    def __init__(self, text: str, registers: Registers) -> None:
        self._text = text
        self._registers = registers
        self._depth = 0
        self.position = 0
        self._skip(0)

    def _skip(self, count: int) -> None:
        """Go on behind `count` characters and the spaces after them."""
        found = _SPACE.match(self._text, self.position + count)
        self.position = found.end() if found is not None else len(self._text)

    @property
    def _next(self) -> str:
        return self._text[self.position : self.position + 1]

    def sum(self) -> int:
        value = self._logic()
        while (operator := self._next) and operator in "+-":
            self._skip(1)
            right = self._logic()
            value = signed(value + right if operator == "+" else value - right)
        return value

    def _logic(self) -> int:
        value = self._product()
        while (operator := self._next) and operator in "&|^":
            self._skip(1)
            right = self._product()
            value = value & right if operator == "&" else value | right if operator == "|" else value ^ right
        return value

    def _product(self) -> int:
        value = self._unary()
        while (operator := self._next) and operator in "*/%":
            self._skip(1)
            right = self._unary()
            value = signed(value * right if operator == "*" else _divide(value, right, operator))
        return value

    def _unary(self) -> int:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Complaint("expression too deep")
        character = self._next
        if character and character in "+-~":
            self._skip(1)
            value = self._unary()
            value = signed({"+": value, "-": -value, "~": ~value}[character])
        elif character == "(":
            self._skip(1)
            value = self.sum()
            if self._next != ")":
                raise Complaint("')' expected")
            self._skip(1)
        else:
            value = self._atom(character)
        self._depth -= 1
        return value

    def _atom(self, character: str) -> int:
        if character == "'":
            return self._character()
        if character == "$":
            self.position += 1
            return self._register()
        if not character:
            raise Complaint("unexpected end of expression")
        found = _NUMBER.match(self._text, self.position)
        if found is None:
            raise Complaint(f"invalid char '{character}' in expression")
        word = found.group()
        base = 16 if word[:2] in ("0x", "0X") else 8 if word[0] == "0" else 10
        value = int(word, base)
        if value > _MASK:
            raise Complaint("number too large")
        self._skip(len(word))
        return signed(value)

    def _character(self) -> int:
        """'c': what the monitor knows a character by is its number."""
        quoted = self._text[self.position + 1 :]
        if not quoted:
            raise Complaint("character constant expected")
        if quoted[1:2] != "'":
            raise Complaint("missing terminating ' character")
        self._skip(3)
        return ord(quoted[0])

    def _register(self) -> int:
        found = _REGISTER.match(self._text, self.position)
        name = found.group() if found is not None else ""
        value = self._registers(name)
        if value is None:
            raise Complaint("unknown register")
        self._skip(len(name))
        return signed(value)


def _divide(left: int, right: int, operator: str) -> int:
    if right == 0:
        raise Complaint("division by zero")
    quotient = abs(left) // abs(right)
    quotient = -quotient if (left < 0) != (right < 0) else quotient
    return quotient if operator == "/" else left - quotient * right
