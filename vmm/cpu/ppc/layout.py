"""Where Unicorn 2.1.4 keeps the state of a 32-bit PowerPC, and the test that refuses any other layout.

Unicorn's calls reach the general registers, but neither the special ones nor what an exception was about.  Both are in
the state that a context holds, a plain structure in memory.  `PpcState` names its fields; `verify_layout` looks whether
each is where it is expected, before anything is changed in a state.

Numbers of special-purpose registers are the architecture's.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

from unicorn import ppc_const
from unicorn import unicorn_const as const

from devices.errors import ConfigError
from vmm.cpu import binding

STATE_SIZE = 73216
MSR_OFFSET = 332
MODEL = ppc_const.UC_CPU_PPC32_604E_V2_4
PROCESSOR_VERSION = 0x00090204  # what PVR reads in a 604e of revision 2.4

# bits of the machine state register
MSR_POW, MSR_ILE, MSR_EE, MSR_PR, MSR_FP, MSR_ME = 1 << 18, 1 << 16, 1 << 15, 1 << 14, 1 << 13, 1 << 12
MSR_IP, MSR_IR, MSR_DR, MSR_LE = 1 << 6, 1 << 5, 1 << 4, 1
_MSR_MASK = 0x5FF77  # the bits that a 604e has

# special-purpose registers
DSISR, DAR, SDR1, SRR0, SRR1, PVR = 18, 19, 25, 26, 27, 287
SPRG0 = 272
IBAT0U, DBAT0U = 528, 536

BATS = 4
_GPR, _LR, _CTR, _CR, _XER, _CARRIES, _NIP = 0, 256, 260, 264, 296, 300, 352
_RESERVATION = 320
_SR, _DBAT, _IBAT, _SPR = 372, 504, 568, 696
_VSR, _FPSCR = 70336, 71404


class _Field:
    """One 32-bit number of the state, at a fixed place."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def __get__(self, state: PpcState, owner: type) -> int:
        value: int = _WORD.unpack_from(state.memory, self.offset)[0]
        return value

    def __set__(self, state: PpcState, value: int) -> None:
        _WORD.pack_into(state.memory, self.offset, value)


_WORD, _SIGNED, _DOUBLE = struct.Struct("<I"), struct.Struct("<i"), struct.Struct("<Q")


class PpcState:
    """A view of one saved CPU state.  Fields change in place; `Engine.restore` makes the changes count.

    `msr` can only be read here: what depends on it is computed where it is written through Unicorn."""

    lr = _Field(_LR)
    ctr = _Field(_CTR)
    nip = _Field(_NIP)
    msr_mask = _Field(71432)
    error_code = _Field(71472)
    exception_prefix = _Field(71904)
    fpscr = _Field(_FPSCR)
    tlb_need_flush = _Field(692)
    reserve_address = _Field(_RESERVATION)
    reserve_value = _Field(_RESERVATION + 4)

    def __init__(self, address: int, size: int) -> None:
        self.memory = memoryview((ctypes.c_char * size).from_address(address)).cast("B")

    @property
    def msr(self) -> int:
        return self._word(MSR_OFFSET)

    def _word(self, offset: int) -> int:
        value: int = _WORD.unpack_from(self.memory, offset)[0]
        return value

    def words(self, offset: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}I", self.memory, offset)

    def set_words(self, offset: int, values: Sequence[int]) -> None:
        struct.pack_into(f"<{len(values)}I", self.memory, offset, *values)

    def register(self, number: int) -> int:
        """General-purpose register 0 to 31."""
        return self._word(_GPR + 4 * number)

    def set_register(self, number: int, value: int) -> None:
        _WORD.pack_into(self.memory, _GPR + 4 * number, value)

    def special(self, number: int) -> int:
        """The special-purpose register of this number."""
        return self._word(_SPR + 4 * number)

    def set_special(self, number: int, value: int) -> None:
        _WORD.pack_into(self.memory, _SPR + 4 * number, value)

    @property
    def segments(self) -> tuple[int, ...]:
        return self.words(_SR, 16)

    @segments.setter
    def segments(self, values: Sequence[int]) -> None:
        self.set_words(_SR, values)

    def blocks(self, instruction: bool) -> list[tuple[int, int]]:
        """The block address translation registers, upper and lower of each."""
        base = _IBAT if instruction else _DBAT
        return list(zip(self.words(base, BATS), self.words(base + 32, BATS), strict=True))

    def set_block(self, instruction: bool, number: int, upper: int, lower: int) -> None:
        base = (_IBAT if instruction else _DBAT) + 4 * number
        self.set_words(base, (upper,))
        self.set_words(base + 32, (lower,))

    @property
    def condition(self) -> int:
        """CR as one number."""
        return sum(field << 4 * (7 - number) for number, field in enumerate(self.words(_CR, 8)))

    @condition.setter
    def condition(self, value: int) -> None:
        self.set_words(_CR, [value >> 4 * (7 - number) & 0xF for number in range(8)])

    @property
    def xer(self) -> int:
        """XER as one number: Unicorn keeps SO, OV and CA beside the rest."""
        summary, overflow, carry = self.words(_CARRIES, 3)
        return self._word(_XER) & 0x1FFFFFFF | summary << 31 | overflow << 30 | carry << 29

    @xer.setter
    def xer(self, value: int) -> None:
        self.set_words(_XER, (value & 0x1FFFFFFF, value >> 31 & 1, value >> 30 & 1, value >> 29 & 1))

    def float(self, number: int) -> int:
        """The 64 bits of floating-point register 0 to 31."""
        value: int = _DOUBLE.unpack_from(self.memory, _VSR + 16 * number + 8)[0]
        return value

    def set_float(self, number: int, value: int) -> None:
        _DOUBLE.pack_into(self.memory, _VSR + 16 * number + 8, value)


def open_engine() -> binding.Engine:
    """An engine with this processor."""
    return binding.Engine(const.UC_ARCH_PPC, const.UC_MODE_PPC32 | const.UC_MODE_BIG_ENDIAN, MODEL)


# -- the self-test ---------------------------------------------------------------------------------------------------

_PROBE_GPA = 0x1000
_PROBE_CODE = struct.pack(
    ">15I",
    0x7C7043A6,  # mtspr SPRG0, r3
    0x7C7A03A6,  # mtspr SRR0, r3
    0x7C7B03A6,  # mtspr SRR1, r3
    0x7C7903A6,  # mtspr SDR1, r3
    0x7C7303A6,  # mtspr DAR, r3
    0x7C7203A6,  # mtspr DSISR, r3
    0x7C6B01A4,  # mtsr 11, r3
    0x7C7383A6,  # mtspr IBAT1L, r3
    0x7C9283A6,  # mtspr IBAT1U, r4
    0x7C7983A6,  # mtspr DBAT0L, r3
    0x7C9883A6,  # mtspr DBAT0U, r4
    0x7C002028,  # lwarx r0, 0, r4
    0x44000042,  # sc 2
    0,
    0,
)
_VALUE, _ADDRESS = 0x00131002, 0x00001000


class Mismatch(Exception):
    """A field that is not where it should be."""


def _expect(name: str, found: object, expected: object) -> None:
    if found != expected:
        raise Mismatch(f"{name} reads {found!r}, not {expected!r}")


@functools.cache
def verify_layout() -> None:
    """ConfigError unless this Unicorn keeps its CPU state as this module says.  Done once per process."""
    binding.require_tested_version()
    engine = open_engine()
    try:
        _expect("the size of the CPU state", engine.state_size, STATE_SIZE)
        state = PpcState(engine.state_address, engine.state_size)
        engine.save()
        _expect("PVR", state.special(PVR), PROCESSOR_VERSION)
        _expect("the mask of MSR", state.msr_mask, _MSR_MASK)
        _verify_registers(engine, state)
        _verify_special_registers(engine, state)
    except Mismatch as mismatch:
        raise ConfigError(f"this build of Unicorn keeps its CPU state in an unknown layout: {mismatch}") from None
    finally:
        engine.close()


def _verify_registers(engine: binding.Engine, state: PpcState) -> None:
    for number in range(32):
        engine.write_register(ppc_const.UC_PPC_REG_0 + number, 0x11223300 + number)
        engine.write_register(ppc_const.UC_PPC_REG_FPR0 + number, 0x4050607080900000 + number)
    named = {"LR": 0x12345678, "CTR": 0x23456789, "CR": 0x89ABCDEF, "FPSCR": 0x5, "PC": 0x3456789C, "MSR": 0x2040}
    for name, value in named.items():
        engine.write_register(getattr(ppc_const, f"UC_PPC_REG_{name}"), value)
    engine.save()
    _expect("r0 … r31", [state.register(n) for n in range(32)], [0x11223300 + n for n in range(32)])
    _expect("f0 … f31", [state.float(n) for n in range(32)], [0x4050607080900000 + n for n in range(32)])
    found = (state.lr, state.ctr, state.condition, state.fpscr, state.nip, state.msr)
    _expect("LR, CTR, CR, FPSCR, PC, MSR", found, tuple(named.values()))
    _expect("the exceptions' prefix", state.exception_prefix, 0xFFF00000)
    engine.write_register(ppc_const.UC_PPC_REG_MSR, 0)
    engine.save()
    _expect("the exceptions' prefix", state.exception_prefix, 0)


def _verify_special_registers(engine: binding.Engine, state: PpcState) -> None:
    page = ctypes.create_string_buffer(2 * 4096)
    address = -(-ctypes.addressof(page) // 4096) * 4096
    ctypes.memmove(address, _PROBE_CODE, len(_PROBE_CODE))
    engine.map_memory(_PROBE_GPA, 4096, binding.PROT_ALL, address)
    engine.hook(binding.HOOK_INTERRUPT, binding.InterruptCallback(lambda _engine, _kind, _data: engine.stop()))
    engine.write_register(ppc_const.UC_PPC_REG_3, _VALUE)
    engine.write_register(ppc_const.UC_PPC_REG_4, _ADDRESS)
    engine.write_register(ppc_const.UC_PPC_REG_XER, 0)
    engine.start(_PROBE_GPA)
    engine.save()
    for number in (SPRG0, SRR0, SRR1, SDR1, DAR, DSISR):
        _expect(f"special register {number}", state.special(number), _VALUE)
    _expect("sr11", state.segments[11], _VALUE)
    _expect("IBAT1", state.blocks(True)[1], (_ADDRESS, _VALUE & 0xFFFE007B))
    _expect("DBAT0", state.blocks(False)[0], (_ADDRESS, _VALUE & 0xFFFE007B))
    _expect("the reservation", state.reserve_address, _ADDRESS)
    _expect("the exception's error code", state.error_code, 2)
