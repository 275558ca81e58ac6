"""The framing of gdb's remote serial protocol, from its manual."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.control.gdb.packets import LONGEST_PACKET_BYTES, Mark, PacketReader, escape, packet, unescape


def read(data: bytes) -> list[bytes | Mark]:
    return list(PacketReader().feed(data))


@pytest.mark.parametrize(
    ("sent", "items"),
    [
        (b"$g#67", [b"g"]),
        (b"$#00", [b""]),
        (b"+$qC#b4", [Mark.ACKNOWLEDGED, b"qC"]),
        (b"-", [Mark.REFUSED]),
        (b"\x03", [Mark.INTERRUPT]),
        (b"$g#67\x03$?#3f", [b"g", Mark.INTERRUPT, b"?"]),
        (b"$g#68", [Mark.DAMAGED]),
        (b"$g#zz$?#3f", [Mark.DAMAGED, b"?"]),
        (b"noise\0\n$?#3f#00", [b"?"]),
        (b"$never ended$?#3f", [b"?"]),
        (b"$X0,4:}\x03}\x04}]}\x0a#%02x" % (sum(b"X0,4:}\x03}\x04}]}\x0a") & 255), [b"X0,4:#$}*"]),
        (b"$a\x03b#c6", [b"a\x03b"]),  # within a packet it is a byte like any other
        (b"$G#47", [b"G"]),
    ],
)
def test_bytes_become_packets_and_marks(sent: bytes, items: list[bytes | Mark]) -> None:
    assert read(sent) == items


@given(st.binary(max_size=200), st.binary(max_size=20), st.integers(1, 7))
def test_what_is_packed_comes_out_however_it_is_cut(data: bytes, noise: bytes, size: int) -> None:
    sent = noise.replace(b"$", b"") + packet(escape(data))
    reader = PacketReader()
    items = [item for at in range(0, len(sent), size) for item in reader.feed(sent[at : at + size])]
    assert [item for item in items if not isinstance(item, Mark)] == [data]


@given(st.binary(max_size=500))
def test_no_bytes_do_any_harm(data: bytes) -> None:
    reader = PacketReader()
    list(reader.feed(data))
    assert b"?" in [*reader.feed(b"#00#00$?#3f")]


def test_a_checksum_does_not_count_without_acknowledgments() -> None:
    reader = PacketReader()
    reader.checks = False
    assert list(reader.feed(b"$g#00")) == [b"g"]


@pytest.mark.parametrize(("length", "is_taken"), [(LONGEST_PACKET_BYTES, True), (LONGEST_PACKET_BYTES + 1, False)])
def test_a_packet_has_a_longest_length(length: int, is_taken: bool) -> None:
    data = b"a" * length
    assert read(packet(data)) == [data if is_taken else Mark.DAMAGED]


def test_a_packet_without_an_end_is_not_kept_for_ever() -> None:
    reader = PacketReader()
    assert list(reader.feed(b"$" + b"a" * 1_000_000)) == []
    assert reader.pending_bytes <= LONGEST_PACKET_BYTES + 1
    assert list(reader.feed(b"#00$?#3f")) == [Mark.DAMAGED, b"?"]


def test_an_escape_without_a_byte_stands_for_nothing() -> None:
    assert unescape(b"a}") == b"a"
