"""The processor as a value: every register that a guest can write, by name, and what else decides how it goes on.

`registers` has the names of `registers.py` and these: `dr0` … `dr7`, `xcr0`; the MSRs `pat vm_hsave misc_enable
mcg_status mcg_ctl bndcfgs`, `mtrr_def_type`, the MTRRs and the machine check banks as `msr_NNNN` (their number in
hexadecimal); `xmm0` … `xmm15` (128 bits) and `mxcsr`; of the x87 `fpr0` … `fpr7` (80 bits, physical registers; their
low 64 bits are MM0 … MM7), `fpu_control`, `fpu_status` (without its top field), `fpu_top`, `fpu_tags` (bit n: register
n is empty).  It is no dump of Unicorn's state: flags that Unicorn keeps in parts are put together, and what follows
from other registers is computed again.

Beside them: whether the processor halts, whether an interrupt shadow is in force, `blocks` executed so far, and the
last block's address and size, from which the block count tells a store into its own code.

Translations and the TLB are no state.  A processor may forget both at any time; a guest that changes its page tables
and relies on entries that it did not flush may see the change earlier.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unicorn import x86_const

from devices.state import COUNTER, FLAG, Kind, Plain, State, require_fields, uint
from vmm.cpu import binding, registers
from vmm.cpu.layout import HF_INHIBIT_IRQ, STATE_SIZE, CpuState
from vmm.cpu.native import Clock

#: places in Unicorn's state with their sizes in bytes
_PLACES: dict[str, tuple[int, int]] = {
    "bndcfgs": (584, 8),
    "fpu_top": (604, 4),
    "fpu_status": (608, 2),
    **{f"fpr{number}": (624 + 16 * number, 10) for number in range(8)},
    **{f"xmm{number}": (824 + 64 * number, 16) for number in range(16)},
    "vm_hsave": (4832, 8),
    "xcr0": (4904, 8),
    "mcg_status": (4912, 8),
    "misc_enable": (4920, 8),
    "pat": (5280, 8),
    **{f"dr{number}": (STATE_SIZE - 168 + 8 * number, 8) for number in range(8)},
}
_TAGS = 612  # a byte for each register of the x87
_RENAMED_MSRS = {"mtrr_def_type": 0x2FF, "mcg_ctl": 0x17B}
_MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270))
_MACHINE_CHECK_BANKS = range(0x400, 0x428)
#: MSRs that lie behind the part of the state that a context holds
_FAR_MSRS = _RENAMED_MSRS | {f"msr_{number:04x}": number for number in (*_MTRRS, *_MACHINE_CHECK_BANKS)}
_CONTROLS = {"fpu_control": (x86_const.UC_X86_REG_FPCW, 16), "mxcsr": (x86_const.UC_X86_REG_MXCSR, 32)}

FIELDS: dict[str, Kind] = {
    "halted": FLAG,
    "interrupt_shadow": FLAG,
    "blocks": COUNTER,
    "last_block_address": uint(64),
    "last_block_bytes": uint(32),
}


def read(engine: binding.Engine, state: CpuState, clock: Clock, halted: bool) -> State:
    """The state of a processor that does not run."""
    return {
        "registers": {**read_registers(engine, state)},
        "halted": halted,
        "interrupt_shadow": bool(state.hflags & HF_INHIBIT_IRQ),
        "blocks": int(clock.executed),
        "last_block_address": int(clock.previous_pc),
        "last_block_bytes": int(clock.previous_size),
    }


def read_registers(engine: binding.Engine, state: CpuState) -> dict[str, int]:
    """All registers of a processor that does not run."""
    engine.save()
    values = registers.read(state, engine.read_register(x86_const.UC_X86_REG_RFLAGS))
    for name, (offset, size) in _PLACES.items():
        values[name] = int.from_bytes(state.memory[offset : offset + size], "little")
    values["fpu_tags"] = sum((state.memory[_TAGS + number] & 1) << number for number in range(8))
    for name, (number, bits) in _CONTROLS.items():
        values[name] = engine.read_register(number) & (1 << bits) - 1
    for name, number in _FAR_MSRS.items():
        values[name] = engine.read_msr(number)
    return values


def check(present: State, saved: Any, where: str) -> None:
    """ConfigError unless `saved` has what the state `present` has, and numbers that fit."""
    require_fields(where, saved, ["registers", "shadow", *FIELDS])
    for name, kind in FIELDS.items():
        kind.check(None, saved[name], f"{where}.{name}")
    named: Plain = present["registers"]
    values = require_fields(f"{where}.registers", saved["registers"], list(named) if isinstance(named, dict) else [])
    for name, value in values.items():
        uint(_bits(name)).check(None, value, f"{where}.registers.{name}")


def write(engine: binding.Engine, state: CpuState, clock: Clock, saved: Any) -> None:
    """Make a processor that does not run what `check` has accepted; the caller forgets translations and the TLB."""
    write_registers(engine, state, saved["registers"])
    engine.save()
    state.hflags = state.hflags & ~HF_INHIBIT_IRQ | (HF_INHIBIT_IRQ if saved["interrupt_shadow"] else 0)
    state.old_exception = -1
    engine.restore()
    clock.executed = saved["blocks"]
    clock.previous_pc = saved["last_block_address"]
    clock.previous_size = saved["last_block_bytes"]


def write_registers(engine: binding.Engine, state: CpuState, values: Mapping[str, int]) -> None:
    """Change those that `values` names, of a processor that does not run.  KeyError for an unknown name."""
    engine.save()
    basic = _basic(state)
    others = (*_PLACES, *_CONTROLS, *_FAR_MSRS, "fpu_tags")
    for name in values:
        if name not in basic and name not in others:
            raise KeyError(name)
    for name, (offset, size) in _PLACES.items():
        if name in values:
            state.memory[offset : offset + size] = values[name].to_bytes(size, "little")
    if "fpu_tags" in values:
        for number in range(8):
            state.memory[_TAGS + number] = values["fpu_tags"] >> number & 1
    registers.write(state, {name: value for name, value in values.items() if name in basic})
    engine.restore()
    for name, (number, _bits_of) in _CONTROLS.items():
        if name in values:
            engine.write_register(number, values[name])  # these two also set the rounding of Unicorn's arithmetic
    for name, number in _FAR_MSRS.items():
        if name in values:
            engine.write_msr(number, values[name])


def _basic(state: CpuState) -> dict[str, int]:
    return registers.read(state, 0)


def _bits(name: str) -> int:
    """The width of a register."""
    if name in _PLACES:
        return 8 * _PLACES[name][1] if name != "fpu_top" else 3
    if name in _CONTROLS:
        return _CONTROLS[name][1]
    if name in registers.SEGMENTS or name.endswith(("_limit", "_flags")) or name == "sysenter_cs":
        return 32
    return 8 if name in ("fpu_tags", "cr8") else 64
