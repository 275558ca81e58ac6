"""fw_cfg's DMA interface against QEMU's specification (docs/specs/fw_cfg)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING
from devices.fw_cfg import FwCfg
from devices.fw_cfg_dma import FwCfgDma
from devices.memory import GuestMemory

REQUEST, DATA, RAM_BYTES = 0x1000, 0x2000, 0x10000
HIGH_RAM = 1 << 32
ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
FILE = bytes(range(1, 41))
KEY = 0x20
UNTOUCHED = b"\xee"


class Board:
    def __init__(self) -> None:
        self.memory = GuestMemory(((0, RAM_BYTES), (HIGH_RAM, RAM_BYTES)))
        self.memory.write(0, UNTOUCHED * RAM_BYTES)
        self.fw_cfg = FwCfg({"etc/file": FILE}, dma=True)
        self.dma = FwCfgDma(self.fw_cfg, self.memory)

    def write_port(self, offset: int, half: int) -> None:
        """Four bytes as a little-endian processor writes the big-endian `half`."""
        assert self.dma.write(offset, 4, int.from_bytes(half.to_bytes(4, "big"), "little"), 0) == NOTHING

    def ask(self, control: int, length: int = 0, address: int = DATA, at: int = REQUEST) -> int:
        """Carry out one request; returns what its control has become."""
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        self.write_port(0, at >> 32)
        self.write_port(4, at & 0xFFFFFFFF)
        (answer,) = struct.unpack(">I", self.memory.read(at, 4))
        return int(answer)


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.memory.close()


def test_bit_1_of_the_identification_offers_it() -> None:
    device = FwCfg({}, dma=True)
    device.write(0, 2, 1, 0)
    assert [device.read(1, 1, 0)[0] for _ in range(4)] == [3, 0, 0, 0]


@pytest.mark.parametrize(
    ("offset", "size", "read"), [(0, 4, b"QEMU"), (4, 4, b" CFG"), (0, 8, b"QEMU CFG"), (7, 1, b"G")]
)
def test_the_ports_read_as_the_signature(board: Board, offset: int, size: int, read: bytes) -> None:
    assert board.dma.read(offset, size, 0) == (int.from_bytes(read, "little"), NOTHING)


def test_an_item_is_selected_and_read_by_one_request(board: Board) -> None:
    assert board.ask(KEY << 16 | SELECT | READ, 40) == 0
    assert board.memory.read(DATA - 1, 42) == UNTOUCHED + FILE + UNTOUCHED


def test_a_read_goes_on_where_the_last_one_ended_whichever_way_that_was(board: Board) -> None:
    board.ask(KEY << 16 | SELECT | READ, 4)
    assert board.fw_cfg.read(1, 1, 0)[0] == FILE[4]
    board.ask(SKIP, 10)
    board.ask(READ, 3)
    assert board.memory.read(DATA, 4) == FILE[15:18] + FILE[3:4]


def test_past_the_end_there_are_zeros(board: Board) -> None:
    assert board.ask(KEY << 16 | SELECT | READ, 44) == 0
    assert board.memory.read(DATA, 45) == FILE + bytes(4) + UNTOUCHED
    assert board.ask(SKIP, 0xFFFFFFFF) == 0
    assert board.ask(0x3FFF << 16 | SELECT | READ, 2) == 0
    assert board.memory.read(DATA, 2) == bytes(2)


def test_a_request_may_lie_above_4_gib_and_the_high_half_counts_once(board: Board) -> None:
    assert board.ask(KEY << 16 | SELECT | READ, 40, HIGH_RAM + DATA, at=HIGH_RAM + REQUEST) == 0
    assert board.memory.read(HIGH_RAM + DATA, 40) == FILE
    board.memory.write(REQUEST, struct.pack(">IIQ", KEY << 16 | SELECT | READ, 40, DATA))
    board.write_port(4, REQUEST)
    assert board.memory.read(DATA, 40) == FILE


@pytest.mark.parametrize(
    ("length", "address"),
    [(1, RAM_BYTES), (40, RAM_BYTES - 39), (1, (1 << 64) - 1), (0xFFFFFFFF, 0)],
)
def test_data_that_would_not_lie_in_ram_is_an_error_and_moves_nothing(board: Board, length: int, address: int) -> None:
    assert board.ask(KEY << 16 | SELECT | READ, length, address) == ERROR
    assert board.memory.read(DATA, 0x1000).count(UNTOUCHED) == 0x1000
    assert board.ask(READ, 40) == 0
    assert board.memory.read(DATA, 40) == FILE, "nothing of the item was consumed"


@pytest.mark.parametrize(("length", "answer"), [(16 << 20, 0), ((16 << 20) + 1, ERROR)])
def test_one_request_moves_at_most_16_mib(board: Board, length: int, answer: int) -> None:
    with GuestMemory(((0, 17 << 20),)) as memory:
        memory.write(REQUEST, struct.pack(">IIQ", KEY << 16 | SELECT | READ, length, 1 << 19))
        board.dma = FwCfgDma(board.fw_cfg, memory)
        board.write_port(4, REQUEST)
        assert memory.read(REQUEST, 4) == struct.pack(">I", answer)
        assert memory.read(1 << 19, 40) == (bytes(40) if answer else FILE)


def test_items_cannot_be_written(board: Board) -> None:
    assert board.ask(KEY << 16 | SELECT | WRITE, 4) == ERROR
    assert board.ask(KEY << 16 | SELECT | READ, 40) == 0
    assert board.memory.read(DATA, 40) == FILE


@pytest.mark.parametrize("at", [RAM_BYTES, RAM_BYTES - 15, (1 << 64) - 8])
def test_a_request_outside_ram_vanishes(board: Board, at: int) -> None:
    board.write_port(0, at >> 32)
    board.write_port(4, at & 0xFFFFFFFF)
    assert board.memory.read(0, RAM_BYTES).count(UNTOUCHED) == RAM_BYTES
    assert board.dma == FwCfgDma(board.fw_cfg, board.memory)


@given(st.integers(0, 7), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1))
def test_every_access_is_answered_and_a_reset_equals_a_new_one(offset: int, size: int, value: int) -> None:
    board = Board()
    board.dma.write(offset, size, value & (1 << 8 * size) - 1, 0)
    assert 0 <= board.dma.read(offset, size, 0)[0] < 1 << 8 * size
    board.dma.reset()
    assert board.dma == FwCfgDma(board.fw_cfg, board.memory)
    board.memory.close()
