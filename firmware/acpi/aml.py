"""ACPI machine language: terms as bytes (ACPI 6.5 §20.2).

Every function returns one encoded term, and terms are joined by being written one after another, so a program is read
here as it would be in ASL.  An `int` stands for the constant of that value wherever a term is expected.  Encodings are
the shortest that the grammar allows.

The module owns the grammar, and no more: it does not know what a device or a method is for, and does not check that a
name exists.  ValueError where a value cannot be encoded.
"""

from __future__ import annotations

import re

Term = bytes | int

ZERO, ONE = b"\x00", b"\x01"
ARG0 = b"\x68"

_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_PREFIXES = re.compile(r"\\?\^*")
_DUAL, _MULTI, _NULL = b"\x2e", b"\x2f", b"\x00"
_EXTENDED = b"\x5b"
_PCI_CONFIG = 0x02
_BYTE_ACCESS_PRESERVED = 0x01  # AccessType ByteAcc, LockRule NoLock, UpdateRule Preserve


# -- names and constants (§20.2.2, §20.2.3) ----------------------------------------------------------------------------


def path(text: str) -> bytes:
    r"""A NameString such as "_CRS", "\\_SB.PCI0" or "^ISA"; segments shorter than four characters are filled up."""
    prefix = _PREFIXES.match(text)
    start = prefix.end() if prefix else 0
    if "\\^" in text:
        raise ValueError(f"an AML name must begin with a backslash or with carets, not with both: {text!r}")
    segments = [_segment(each) for each in text[start:].split(".")] if text[start:] else []
    lead = {0: _NULL, 1: b"", 2: _DUAL}.get(len(segments), _MULTI + bytes([len(segments) & 0xFF]))
    if len(segments) > 255 or not text:
        raise ValueError(f"an AML name must have 1 to 255 segments, not {len(segments)}")
    return text[:start].encode("ascii") + lead + b"".join(segments)


def _segment(text: str) -> bytes:
    if not _SEGMENT.fullmatch(text):
        raise ValueError(f"a segment of an AML name must be 1 to 4 of A-Z, 0-9 and _, not {text!r}")
    return text.ljust(4, "_").encode("ascii")


def integer(value: int) -> bytes:
    """A constant from 0 to 2^64 - 1."""
    if value in (0, 1):
        return (ZERO, ONE)[value]
    for limit, size, prefix in (
        (1 << 8, 1, b"\x0a"),
        (1 << 16, 2, b"\x0b"),
        (1 << 32, 4, b"\x0c"),
        (1 << 64, 8, b"\x0e"),
    ):
        if 0 <= value < limit:
            return prefix + value.to_bytes(size, "little")
    raise ValueError(f"an AML integer must be from 0 to 2^64 - 1, not {value}")


def string(text: str) -> bytes:
    """A string of ASCII characters other than NUL."""
    if not text.isascii() or "\0" in text:
        raise ValueError(f"an AML string must be ASCII without NUL, not {text!r}")
    return b"\x0d" + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA identifier such as "PNP0A03": letters of 5 bits and hexadecimal digits, big-endian (§6.1.5)."""
    if not re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", text):
        raise ValueError(f"an EISA identifier must be three letters and four hexadecimal digits, not {text!r}")
    first, second, third = (ord(letter) - ord("@") for letter in text[:3])
    packed = (first << 10 | second << 5 | third) << 16 | int(text[3:], 16)
    return integer(int.from_bytes(packed.to_bytes(4, "big"), "little"))


def _term(term: Term) -> bytes:
    return integer(term) if isinstance(term, int) else term


def _join(terms: tuple[Term, ...]) -> bytes:
    return b"".join(_term(term) for term in terms)


# -- lengths (§20.2.4) -------------------------------------------------------------------------------------------------


def encode_length(value: int) -> bytes:
    """`value` as a PkgLength: up to 63 in one byte, else 4 bits in the first and 8 in each of up to three more."""
    if value < 1 << 6:
        return bytes([value])
    for more in (1, 2, 3):
        if value < 1 << 4 + 8 * more:
            return bytes([more << 6 | value & 0xF]) + (value >> 4).to_bytes(more, "little")
    raise ValueError(f"an AML object must be smaller than 2^28 bytes, not {value}")


def _package_length(body: bytes) -> bytes:
    """The PkgLength of `body`, which counts itself too, and `body`."""
    for own in (1, 2, 3, 4):
        encoded = encode_length(len(body) + own)
        if len(encoded) == own:
            return encoded + body
    raise AssertionError("encode_length refuses what does not fit into four bytes")


# -- data objects (§20.2.5.4) ------------------------------------------------------------------------------------------


def buffer(data: bytes) -> bytes:
    """A buffer of just these bytes."""
    return b"\x11" + _package_length(integer(len(data)) + data)


def package(*elements: Term) -> bytes:
    """A package of at most 255 elements: data objects, or names as `path` gives them."""
    if len(elements) > 255:
        raise ValueError(f"an AML package must have at most 255 elements, not {len(elements)}")
    return b"\x12" + _package_length(bytes([len(elements)]) + _join(elements))


# -- named objects (§20.2.5.1, §20.2.5.2) ------------------------------------------------------------------------------


def name(where: str, value: Term) -> bytes:
    """Name (where, value)"""
    return b"\x08" + path(where) + _term(value)


def scope(where: str, *terms: Term) -> bytes:
    """Scope (where) {terms}"""
    return b"\x10" + _package_length(path(where) + _join(terms))


def device(where: str, *terms: Term) -> bytes:
    """Device (where) {terms}"""
    return _EXTENDED + b"\x82" + _package_length(path(where) + _join(terms))


def method(where: str, arguments: int, *terms: Term, serialized: bool = False) -> bytes:
    """Method (where, arguments, serialized) {terms}, with 0 to 7 arguments"""
    if not 0 <= arguments <= 7:
        raise ValueError(f"an AML method must have 0 to 7 arguments, not {arguments}")
    return b"\x14" + _package_length(path(where) + bytes([arguments | serialized << 3]) + _join(terms))


def pci_config_region(where: str, offset: int, length: int) -> bytes:
    """OperationRegion (where, PCI_Config, offset, length)"""
    return _EXTENDED + b"\x80" + path(where) + bytes([_PCI_CONFIG]) + integer(offset) + integer(length)


def byte_fields(region: str, *names: str) -> bytes:
    """Field (region, ByteAcc, NoLock, Preserve) {names}: one byte each, from the region's start."""
    fields = b"".join(_segment(each) + encode_length(8) for each in names)
    return _EXTENDED + b"\x81" + _package_length(path(region) + bytes([_BYTE_ACCESS_PRESERVED]) + fields)


def create_dword_field(source: Term, index: int, field: str) -> bytes:
    """CreateDWordField (source, index, field)"""
    return b"\x8a" + _term(source) + integer(index) + path(field)


# -- statements and expressions (§20.2.5.3, §20.2.5.4) -----------------------------------------------------------------


def if_(condition: Term, *terms: Term) -> bytes:
    """If (condition) {terms}"""
    return b"\xa0" + _package_length(_term(condition) + _join(terms))


def return_(value: Term) -> bytes:
    """Return (value)"""
    return b"\xa4" + _term(value)


def store(value: Term, target: bytes) -> bytes:
    """Store (value, target)"""
    return b"\x70" + _term(value) + target


def and_(left: Term, right: Term, target: bytes = _NULL) -> bytes:
    """And (left, right, target); without a target it is an expression only"""
    return b"\x7b" + _term(left) + _term(right) + target


def or_(left: Term, right: Term, target: bytes = _NULL) -> bytes:
    """Or (left, right, target)"""
    return b"\x7d" + _term(left) + _term(right) + target


def not_(value: Term) -> bytes:
    """LNot (value)"""
    return b"\x92" + _term(value)
