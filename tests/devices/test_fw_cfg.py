"""fw_cfg against QEMU's specification (docs/specs/fw_cfg), the traditional interface."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.bus import AddressSpace
from devices.effects import NOTHING
from devices.fw_cfg import FwCfg

SELECTOR, DATA = 0, 1
FILES = {"opt/zeta": b"last", "etc/e820": bytes(range(40)), "opt/empty": b""}


def select(device: FwCfg, key: int) -> None:
    assert device.write(SELECTOR, 2, key, 0) == NOTHING


def take(device: FwCfg, count: int) -> bytes:
    return bytes(device.read(DATA, 1, 0)[0] for _ in range(count))


def directory(device: FwCfg) -> dict[str, tuple[int, int]]:
    """Name to (size, key), read as a guest reads it."""
    select(device, 0x19)
    (count,) = struct.unpack(">I", take(device, 4))
    entries = [struct.unpack(">IHH56s", take(device, 64)) for _ in range(count)]
    assert all(reserved == 0 and name.endswith(b"\0") for _, _, reserved, name in entries)
    return {name.rstrip(b"\0").decode(): (size, key) for size, key, _, name in entries}


def test_key_0_is_the_signature() -> None:
    device = FwCfg({})
    select(device, 0)
    assert take(device, 4) == b"QEMU"


def test_key_1_offers_the_traditional_interface_and_no_dma() -> None:
    device = FwCfg({})
    select(device, 1)
    assert take(device, 4) == b"\1\0\0\0"


def test_the_directory_lists_the_files_in_the_order_of_their_names() -> None:
    assert directory(FwCfg(FILES)) == {"etc/e820": (40, 0x20), "opt/empty": (0, 0x21), "opt/zeta": (4, 0x22)}


def test_an_empty_directory_is_a_count_of_zero() -> None:
    device = FwCfg({})
    select(device, 0x19)
    assert take(device, 8) == bytes(8)


def test_every_file_reads_back() -> None:
    device = FwCfg(FILES)
    for name, (size, key) in directory(device).items():
        select(device, key)
        assert take(device, size) == FILES[name]


def test_past_the_end_the_data_is_zero() -> None:
    device = FwCfg(FILES)
    select(device, 0x22)
    assert take(device, 9) == b"last" + bytes(5)


@pytest.mark.parametrize("key", [2, 0x18, 0x23, 0x8000, 0xFFFF])
def test_a_key_that_nobody_has_reads_as_zero(key: int) -> None:
    device = FwCfg(FILES)
    select(device, key)
    assert take(device, 4) == bytes(4)


def test_selecting_starts_from_the_first_byte() -> None:
    device = FwCfg(FILES)
    select(device, 0x22)
    assert take(device, 2) == b"la"
    select(device, 0x22)
    assert take(device, 2) == b"la"


def test_the_write_channel_bit_selects_the_same_item() -> None:
    device = FwCfg(FILES)
    select(device, 0x4022)
    assert take(device, 4) == b"last"


def test_data_writes_change_nothing() -> None:
    device = FwCfg(FILES)
    select(device, 0x22)
    for size in (1, 2, 4, 8):
        assert device.write(DATA, size, (1 << 8 * size) - 1, 0) == NOTHING
    assert take(device, 4) == b"last"


def test_the_selector_takes_words_and_ignores_bytes() -> None:
    device = FwCfg(FILES)
    device.write(SELECTOR, 1, 0x22, 0)
    assert take(device, 4) == b"QEMU"
    device.write(SELECTOR, 4, 0xABCD_0022, 0)
    assert take(device, 4) == b"last"


def test_wide_reads_are_made_of_port_bytes() -> None:
    ports = AddressSpace("port", 16)
    ports.add(0x510, 2, FwCfg(FILES), "fw_cfg")
    assert ports.read(0x510, 2, 0)[0] == ord("Q") << 8  # selector, data
    assert ports.read(0x511, 2, 0)[0] == 0xFF00 | ord("E")  # data, nobody
    assert ports.read(0x511, 4, 0)[0] == 0xFFFF_FF00 | ord("M")
    assert ports.read(0x510, 1, 0)[0] == 0
    assert ports.read(0x511, 1, 0)[0] == ord("U")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_handler_alone_answers_as_on_the_bus(size: int) -> None:
    device, ports = FwCfg(FILES), AddressSpace("port", 16)
    ports.add(0x510, 2, FwCfg(FILES), "fw_cfg")
    assert device.read(DATA, size, 0) == ports.read(0x511, size, 0)


@pytest.mark.parametrize("name", ["", "x" * 56, "opt/ä", "a\0b"])
def test_a_name_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a file name must be 1 to 55 ASCII characters"):
        FwCfg({name: b""})


def test_the_keys_end_below_the_selectors_flag_bits() -> None:
    names = [f"f{i}" for i in range(0x4000 - 0x20)]
    full = FwCfg(dict.fromkeys(names, b"end"))
    select(full, 0x3FFF)
    assert take(full, 3) == b"end"
    with pytest.raises(ValueError, match="keys for 16352 files, not for 16353"):
        FwCfg(dict.fromkeys([*names, "one more"], b""))


def test_reset_equals_freshly_built() -> None:
    device = FwCfg(FILES)
    select(device, 0x22)
    take(device, 2)
    assert device != FwCfg(FILES)
    device.reset()
    assert device == FwCfg(FILES)
    assert device != FwCfg({})


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        max_size=50,
    )
)
def test_no_sequence_of_accesses_breaks_it(sequence: list[tuple[bool, int, int, int]]) -> None:
    device = FwCfg(FILES)
    for is_read, offset, size, value in sequence:
        if is_read:
            read, effects = device.read(offset, size, 0)
            assert 0 <= read < 1 << 8 * size
            assert effects == NOTHING
        else:
            assert device.write(offset, size, value & (1 << 8 * size) - 1, 0) == NOTHING
    assert directory(device).keys() == FILES.keys()
