"""Messages out of bytes: QEMU's dialect, cut anywhere, and what becomes of everything else.

The sentences are those that QEMU 7.2 was heard to say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.control.qmp.errors import QmpError
from vmm.control.qmp.stream import DEEPEST, MOST_BYTES, MOST_TOKENS, JsonStream, encode


def take_all(stream: JsonStream) -> list[Any]:
    """Every message, and the sentence in place of one that is none."""
    found = []
    while (taken := stream.take()) is not None:
        found.append(taken.desc if isinstance(taken, QmpError) else taken[0])
    return found


def read(*pieces: bytes) -> list[Any]:
    stream = JsonStream()
    found = []
    for piece in pieces:
        stream.feed(piece)
        found += take_all(stream)
    return found


def test_a_message_ends_where_its_brackets_do() -> None:
    assert read(b'{"execute":"stop"}') == [{"execute": "stop"}]
    assert read(b'{"a":[1,{"b":"}"}]}{"c":2} {"d"', b":3}\n") == [{"a": [1, {"b": "}"}]}, {"c": 2}, {"d": 3}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[]", []),
        ("{}", {}),
        ("[{}, [], [[]], {'a': {}}]", [{}, [], [[]], {"a": {}}]),
        ("{'single': 'he said \"x\"'}", {"single": 'he said "x"'}),
        ('["\\u00e9\\n\\/\\\\\\"", "\\ud83c\\udf88"]', ['é\n/\\"', "🎈"]),
        ("[true, false, null]", [True, False, None]),
        ("[0, -1, 9223372036854775807, 18446744073709551615]", [0, -1, 9223372036854775807, 18446744073709551615]),
        ("[1.5, 1e3, 123456789012345678901234567890]", [1.5, 1000.0, 123456789012345678901234567890.0]),
        ('["\N{BALLOON}"]', ["\N{BALLOON}"]),
    ],
)
def test_a_value(text: str, value: Any) -> None:
    assert read(text.encode()) == [value]
    assert read(*(bytes([byte]) for byte in text.encode())) == [value]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("{'execute': nope}", ["JSON parse error, invalid keyword 'nope'"]),
        ("}", ["JSON parse error, expecting value"]),
        ('{"a":1]', ["JSON parse error, expected separator in dict"]),
        ("x y ", ["JSON parse error, invalid keyword 'x'", "JSON parse error, invalid keyword 'y'"]),
        ('{"a":1  "b":3}', ["JSON parse error, expected separator in dict"]),
        ('{"a" "x"}', ["JSON parse error, missing : in object pair"]),
        ('{"a":"b",}', ["JSON parse error, expecting value"]),
        ("[1,2,]", ["JSON parse error, expecting value"]),
        ("[1 2]", ["JSON parse error, expected separator in list"]),
        ("{1:2}", ["JSON parse error, key is not a string in object"]),
        ('{"a":"\\x"}', ["JSON parse error, invalid escape sequence in string"]),
        ('{"a":01}', ["JSON parse error, stray '01'", "JSON parse error, expecting value"]),
        ('{"a":1,"a":2}', ["JSON parse error, duplicate key"]),
        ("\0", ["JSON parse error, stray '\0'"]),
        ("#", ["JSON parse error, stray '#'"]),
        ('["\\ud83c"]', ["JSON parse error, a half of a surrogate pair is not a valid Unicode character"]),
        ("[1e999]", ["JSON parse error, the number 1e999 is too large"]),
        ("[" * (DEEPEST + 1), ["JSON nesting depth limit exceeded"]),
        ("[" + "1," * MOST_TOKENS, ["JSON token count limit exceeded"]),
        ('"' + "x" * MOST_BYTES, ["JSON token size limit exceeded"]),
        ("[" + '"' + "x" * MOST_BYTES + '"', ["JSON token size limit exceeded"]),
    ],
)
def test_what_is_wrong_gets_one_sentence_and_what_follows_is_understood(text: str, sentences: list[str]) -> None:
    stream = JsonStream()
    stream.feed(text.encode())
    assert take_all(stream)[: len(sentences)] == sentences
    stream.feed(b"\x01" + b"]" * 300)  # something that certainly ends whatever is open
    take_all(stream)
    stream.feed(b'{"execute": "stop"}')
    assert take_all(stream) == [{"execute": "stop"}]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), max_size=3), st.integers(1, 40))
def test_whatever_is_json_is_understood_however_it_is_cut(values: list[Any], size: int) -> None:
    for ascii_only in (True, False):
        data = "".join(json.dumps(value, ensure_ascii=ascii_only) for value in values).encode()
        assert read(*(data[at : at + size] for at in range(0, len(data), size))) == values


@given(st.binary(max_size=200), st.integers(1, 20))
def test_whatever_is_sent_is_answered_and_forgotten(data: bytes, size: int) -> None:
    read(*(data[at : at + size] for at in range(0, len(data), size)))


@given(st.binary(max_size=60), st.integers(1, 20))
def test_how_it_is_cut_makes_no_difference(data: bytes, size: int) -> None:
    data += b'\x01{"a":1}'
    assert read(*(data[at : at + size] for at in range(0, len(data), size)))[-1] == read(data)[-1]


def test_what_is_kept_has_an_end() -> None:
    stream = JsonStream()
    for _ in range(3 * MOST_BYTES // 4096):
        stream.feed(b" " * 4096)
        assert take_all(stream) == []
        assert len(stream._text) <= 4096 + 1


def test_an_answer_is_ascii_and_a_line() -> None:
    assert encode({"return": "é"}) == b'{"return": "\\u00e9"}\r\n'
