"""The AML encoder against the grammar of ACPI §20.2, decoded here by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.acpi import aml


def decode_length(data: bytes) -> tuple[int, int]:
    """(value, bytes) of a PkgLength (§20.2.4): bits 7:6 of the lead byte count the bytes that follow."""
    lead = data[0]
    following = lead >> 6
    if following == 0:
        return lead & 0x3F, 1
    assert lead & 0x30 == 0, "bits 5:4 are reserved when bytes follow"
    value = lead & 0xF
    for index in range(following):
        value |= data[1 + index] << 4 + 8 * index
    return value, 1 + following


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (63, "3f"),
        (64, "4004"),
        (4095, "4fff"),
        (4096, "800001"),
        (0xFFFFF, "8fffff"),
        (0x100000, "c0000001"),
        (0xFFFFFFF, "cfffffff"),
    ],
)
def test_a_length_takes_as_few_bytes_as_it_can(value: int, encoded: str) -> None:
    assert aml.encode_length(value).hex() == encoded


def test_a_length_of_more_than_28_bits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"smaller than 2\^28 bytes, not 268435456$"):
        aml.encode_length(1 << 28)


@given(st.integers(0, (1 << 28) - 1))
def test_every_length_reads_back(value: int) -> None:
    encoded = aml.encode_length(value)
    assert decode_length(encoded) == (value, len(encoded))


@pytest.mark.parametrize(
    "size", [0, 58, 59, 60, 61, 62, 63, 4088, 4089, 4090, 4091, 4092, 4093, 4094, 1048569, 1048570]
)
def test_an_object_s_length_counts_itself_and_everything_behind_it(size: int) -> None:
    """Around the sizes at which the length itself grows by a byte."""
    encoded = aml.scope("_SB", bytes(size))
    length, own = decode_length(encoded[1:])
    assert length == len(encoded) - 1 == own + len(b"_SB_") + size


@given(st.integers(0, (1 << 64) - 1))
def test_a_constant_reads_back_and_is_as_short_as_can_be(value: int) -> None:
    encoded = aml.integer(value)
    sizes = {0x00: 0, 0x01: 0, 0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}
    assert len(encoded) == 1 + sizes[encoded[0]]
    if len(encoded) == 1:
        assert value == encoded[0]
    else:
        assert int.from_bytes(encoded[1:], "little") == value
        assert value >= (2 if encoded[0] == 0x0A else 1 << 4 * sizes[encoded[0]])


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_a_constant_beyond_64_bits_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=rf"from 0 to 2\^64 - 1, not {value}$"):
        aml.integer(value)


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("_CRS", b"_CRS"),
        ("_SB", b"_SB_"),
        ("\\", b"\\\0"),
        ("^", b"^\0"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("^^LNKA", b"^^LNKA"),
        ("\\_SB.PCI0.ISA.PRQA", b"\\\x2f\x04_SB_PCI0ISA_PRQA"),
    ],
)
def test_names_are_segments_of_four_behind_their_prefixes(text: str, encoded: bytes) -> None:
    assert aml.path(text) == encoded


@pytest.mark.parametrize("text", ["", "ABCDE", "_sb", "1ABC", "A..B", "\\^A", "A B", "^A^B", ".".join(["A"] * 256)])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(a segment of )?an AML name must "):
        aml.path(text)


def test_an_eisa_identifier_is_the_one_of_the_specification() -> None:
    """PNP0A03 is 030AD041h as a little-endian constant (§6.1.5 gives 0x030AD041 for it)."""
    assert aml.eisa_id("PNP0A03") == b"\x0c\x41\xd0\x0a\x03"


@pytest.mark.parametrize("text", ["PNP0A0", "pnp0A03", "PNP0A0G", "QEMU0001"])
def test_what_is_no_eisa_identifier_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^an EISA identifier must be "):
        aml.eisa_id(text)


@pytest.mark.parametrize(
    ("term", "encoded"),
    [
        (aml.name("PICF", 0), "08 50494346 00"),
        (aml.string("Q1"), "0d 5131 00"),
        (aml.buffer(b"\x79\x00"), "11 05 0a02 7900"),
        (aml.package(0x3FFFF, 0, aml.path("LNKA"), 1), "12 0d 04 0cffff0300 00 4c4e4b41 01"),
        (aml.method("_PIC", 1, aml.store(aml.ARG0, aml.path("PICF"))), "14 0c 5f504943 01 70 68 50494346"),
        (aml.method("_SRS", 7, serialized=True), "14 06 5f535253 0f"),
        (aml.device("RTC", aml.name("_UID", 1)), "5b82 0b 5254435f 08 5f554944 01"),
        (aml.pci_config_region("PIRQ", 0x60, 4), "5b80 50495251 02 0a60 0a04"),
        (aml.byte_fields("PIRQ", "PRQA", "PRQB"), "5b81 10 50495251 01 50525141 08 50525142 08"),
        (aml.if_(aml.not_(aml.path("A")), aml.return_(9)), "a0 09 92 415f5f5f a4 0a09"),
        (aml.and_(aml.path("A"), 0x80), "7b 415f5f5f 0a80 00"),
        (aml.or_(aml.path("A"), 0x80, aml.path("A")), "7d 415f5f5f 0a80 415f5f5f"),
        (aml.create_dword_field(aml.ARG0, 5, "LINE"), "8a 68 0a05 4c494e45"),
    ],
)
def test_terms_are_their_opcode_and_their_arguments(term: bytes, encoded: str) -> None:
    assert term == bytes.fromhex(encoded)


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 255 elements, not 256"):
        aml.package(*range(256))
    with pytest.raises(ValueError, match="0 to 7 arguments, not 8"):
        aml.method("A", 8)
    with pytest.raises(ValueError, match="ASCII without NUL"):
        aml.string("a\0b")
