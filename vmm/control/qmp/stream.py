"""JSON messages out of a stream of bytes that may be cut anywhere, and may be anything.

Owns QEMU's dialect and where its parser begins anew.  A message ends where its brackets do: no newline is needed.
Strings may stand in single quotes too.  Bytes that begin no token, and words that are none, cost one error each, and
what follows them is a new message; so does a bracket too many.  Work and memory are bounded: a message may have
`MOST_BYTES` bytes, `MOST_TOKENS` tokens and brackets `DEEPEST` deep, and `take` gives one message a call.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from vmm.control.qmp.errors import QmpError

MOST_BYTES = 1 << 18
MOST_TOKENS = 1 << 15
DEEPEST = 256
LONGEST_STRAY = 40

Token: TypeAlias = tuple[str, str]  # its kind, or the character that it is, and its text

_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(
    r"""
    (?P<mark>[{}\[\]:,])
  | (?P<string>"(?:[^"\\\x00-\x1f]|\\.)*"|'(?:[^'\\\x00-\x1f]|\\.)*')
  | (?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)(?![0-9.eE+-])
  | (?P<word>[a-z]+)(?![a-z])
    """,
    re.VERBOSE,
)
_UNFINISHED = re.compile(r"""(?:"(?:[^"\\\x00-\x1f]|\\.)*\\?|'(?:[^'\\\x00-\x1f]|\\.)*\\?|[-+.0-9eE]+|[a-z]+)?\Z""")
_STRAY = re.compile(r"""["'](?:[^"'\\\x00-\x1f]|\\.)*.?|[-+.0-9A-Za-z_]+|.""", re.DOTALL)
_WORDS = {"true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "/": "/"}


class JsonStream:
    """Bytes go in with `feed`; `take` gives what they are, one message a call."""

    def __init__(self) -> None:
        self._text = ""
        self._cut = b""
        self._at = 0
        self._tokens: list[Token] = []
        self._open: list[str] = []
        self._bytes = 0

    def feed(self, data: bytes) -> None:
        """The next bytes that came."""
        data = self._cut + data
        whole = _whole_characters(data)
        self._cut = data[whole:]
        self._text = self._text[self._at :] + data[:whole].decode("utf-8", "replace")
        self._at = 0

    def take(self) -> tuple[Any] | QmpError | None:
        """The next message in a tuple, or what is wrong with it; None when more bytes are needed."""
        while True:
            self._at = _skip(self._text, self._at)
            found = _TOKEN.match(self._text, self._at)
            # A number or a word may go on in the next piece; so may a string, which does not match then.
            if found is None or (found.end() == len(self._text) and found.lastgroup in ("number", "word")):
                if _UNFINISHED.match(self._text, self._at) is not None:
                    return self._too_long()
                return self._stray()
            self._bytes += found.end() - self._at
            self._at = found.end()
            kind, text = found.lastgroup or "", found[0]
            result = self._add((text if kind == "mark" else kind, text))
            if result is not None:
                self._forget()
                return result

    def _add(self, token: Token) -> tuple[Any] | QmpError | None:
        """One more token: a message, where it is the last of one."""
        kind = token[0]
        self._tokens.append(token)
        if kind in ("{", "["):
            self._open.append(kind)
        elif kind in ("}", "]") and self._open:
            self._open.pop()
        if self._bytes > MOST_BYTES:
            return QmpError("JSON token size limit exceeded")
        if len(self._tokens) > MOST_TOKENS:
            return QmpError("JSON token count limit exceeded")
        if len(self._open) > DEEPEST:
            return QmpError("JSON nesting depth limit exceeded")
        if self._open:
            return None
        try:
            return (_value_of(self._tokens),)
        except QmpError as error:
            return error

    def _too_long(self) -> QmpError | None:
        """A token without an end is given up."""
        if self._bytes + len(self._text) - self._at <= MOST_BYTES:
            return None
        self._at = len(self._text)
        self._forget()
        return QmpError("JSON token size limit exceeded")

    def _stray(self) -> QmpError:
        """What begins no token, to its end, and everything before it in the message is dropped."""
        found = _STRAY.match(self._text, self._at)
        end = max(found.end() if found is not None else 0, self._at + 1)
        text = self._text[self._at : end].strip()
        self._at = end
        self._forget()
        return _wrong(f"stray '{text[:LONGEST_STRAY]}'")

    def _forget(self) -> None:
        self._tokens = []
        self._open = []
        self._bytes = 0


def _skip(text: str, at: int) -> int:
    """Where white space ends."""
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _whole_characters(data: bytes) -> int:
    """How many bytes of `data` end with a whole character of UTF-8; what is no UTF-8 is whole too."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if needed > back else len(data)
        if byte < 0x80:
            break
    return len(data)


def _value_of(tokens: list[Token]) -> Any:
    """The value that the tokens of one message are.  QmpError when they are none.

    Not recursive: how deep brackets go is the client's to say."""
    rest = iter(tokens)
    stack: list[tuple[Any, str | None]] = []  # what is open around, and under which key its next member goes
    result = _begin(next(rest), rest, stack)
    while stack:
        container, key = stack.pop()
        if result is not _OPENED:
            if isinstance(container, dict):
                container[key] = result
            else:
                container.append(result)
        result = _next_member(container, rest, stack, is_first=result is _OPENED)
    left = next(rest, None)
    if left is not None:
        raise _wrong("expecting value")
    return result


_OPENED = object()  # stands for a container whose first member comes next


def _begin(token: Token, rest: Iterator[Token], stack: list[tuple[Any, str | None]]) -> Any:
    """The value that begins with `token`; an opened container goes onto the stack."""
    kind, text = token
    if kind in ("{", "["):
        stack.append(({} if kind == "{" else [], None))
        return _OPENED
    if kind == "string":
        return _string(text)
    if kind == "number":
        return _number(text)
    if kind == "word":
        if text not in _WORDS:
            raise _wrong(f"invalid keyword '{text}'")
        return _WORDS[text]
    raise _wrong("expecting value")


def _next_member(container: Any, rest: Iterator[Token], stack: list[tuple[Any, str | None]], *, is_first: bool) -> Any:
    """Go on in `container`: its next member's value, with the container back on the stack, or itself when it ends."""
    end, what = ("}", "dict") if isinstance(container, dict) else ("]", "list")
    token = _need(rest)
    if token[0] == end:
        return container
    if not is_first:
        if token[0] != ",":
            raise _wrong(f"expected separator in {what}")
        token = _need(rest)
    key = None
    if isinstance(container, dict):
        key = _key(container, token, rest)
        token = _need(rest)
    stack.append((container, key))
    return _begin(token, rest, stack)


def _key(container: dict[str, Any], token: Token, rest: Iterator[Token]) -> str:
    if token[0] != "string":
        raise _wrong("expecting value" if token[0] in ("}", "]", ",", ":") else "key is not a string in object")
    if _need(rest)[0] != ":":
        raise _wrong("missing : in object pair")
    key = _string(token[1])
    if key in container:
        raise _wrong("duplicate key")
    return key


def _need(rest: Iterator[Token]) -> Token:
    token = next(rest, None)
    if token is None:
        raise _wrong("premature EOI")
    return token


def _wrong(what: str) -> QmpError:
    return QmpError(f"JSON parse error, {what}")


def _number(text: str) -> int | float:
    if text.lstrip("-").isdecimal() and len(text) <= 20:
        value = int(text)
        if -(1 << 63) <= value < 1 << 64:
            return value
    made = float(text)
    if math.isinf(made):
        raise _wrong(f"the number {text[:LONGEST_STRAY]} is too large")
    return made


def _string(text: str) -> str:
    inner = text[1:-1]
    if "\\" not in inner:
        return inner
    try:
        made = _ESCAPE.sub(_unescape, inner)
        # Two halves of a surrogate pair were written apart.
        return made.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _wrong("a half of a surrogate pair is not a valid Unicode character") from None


def _unescape(found: re.Match[str]) -> str:
    if found[1] is not None:
        return chr(int(found[1], 16))
    if found[2] == "u":
        raise _wrong("\\u must be followed by four hexadecimal digits of a valid Unicode character")
    if found[2] not in _ESCAPED:
        raise _wrong("invalid escape sequence in string")
    return _ESCAPED[found[2]]


def encode(message: object) -> bytes:
    """One message as QEMU sends it: ASCII, and a line's end behind it."""
    return json.dumps(message).encode() + b"\r\n"
