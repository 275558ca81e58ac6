"""info registers, and the registers of expressions, by the names of the processor's own manual and by QEMU's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vmm.control.monitor.complaints import Failure
from vmm.control.monitor.disassembly import code_bits
from vmm.control.monitor.expressions import Registers

if TYPE_CHECKING:
    from vmm.machine import Machine

_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_FLAGS = ((1 << 10, "D"), (1 << 11, "O"), (1 << 7, "S"), (1 << 6, "Z"), (1 << 4, "A"), (1 << 2, "P"), (1, "C"))
_LONG = 1 << 10  # EFER.LMA
_SYSTEM_32 = (
    *("Reserved", "TSS16-avl", "LDT", "TSS16-busy", "CallGate16", "TaskGate", "IntGate16", "TrapGate16"),
    *("Reserved", "TSS32-avl", "Reserved", "TSS32-busy", "CallGate32", "Reserved", "IntGate32", "TrapGate32"),
)
_SYSTEM_64 = (
    *("<hiword>", "Reserved", "LDT", *["Reserved"] * 6, "TSS64-avl", "Reserved", "TSS64-busy"),
    *("CallGate64", "Reserved", "IntGate64", "TrapGate64"),
)
"""Types of system segments, as QEMU calls them (Intel SDM volume 3, table 3-2)."""

_X86_NAMES = {
    **{f"e{name}": f"r{name}" for name in ("ax", "bx", "cx", "dx", "si", "di", "sp", "bp", "ip")},
    "sp": "rsp",
    "fp": "rbp",
    "eflags": "rflags",
}
_SPECIAL = {"dsisr": 18, "dar": 19, "decr": 22, "sdr1": 25, "srr0": 26, "srr1": 27, "pvr": 287, "hid0": 1008} | {
    f"sprg{number}": 272 + number for number in range(4)
}
_PPC_NAMES = {"nip": "pc", "ccr": "cr", **{name: f"spr_{number}" for name, number in _SPECIAL.items()}}


def info_registers(machine: Machine, all: str = "", vcpu: int = 0) -> str:
    """Those of the one processor."""
    if vcpu:
        raise Failure(f"CPU#{vcpu} not available\n")
    saved: Any = machine.platform.cpu.save_state()
    values: dict[str, int] = saved["registers"]
    lines = _ppc(values) if machine.config.arch == "ppc" else _x86(values, saved)
    return "\nCPU#0\n" + "".join(f"{line}\n" for line in lines)


def is_long_mode(machine: Machine) -> bool:
    """Whether virtual addresses have more than 32 bits."""
    return bool(machine.registers().get("efer", 0) & _LONG)


def named(machine: Machine) -> Registers:
    """The registers of an expression; they are read when the first of them is asked for."""
    values: dict[str, int] = {}

    def value(name: str) -> int | None:
        if not values:
            values.update(machine.registers())
        if machine.config.arch == "ppc":
            return values.get(_PPC_NAMES.get(name, name))
        if name == "pc":
            return values["cs_base"] + values["rip"]
        return values.get(_X86_NAMES.get(name, name).replace(".", "_"))

    return value


# -- x86 -------------------------------------------------------------------------------------------------------------


def _x86(values: Mapping[str, int], saved: Mapping[str, Any]) -> Iterator[str]:
    is_64 = code_bits(dict(values)) == 64
    is_long = bool(values["efer"] & _LONG)
    flags = "".join(letter if values["rflags"] & bit else "-" for bit, letter in _FLAGS)
    state = f"CPL={_privilege(values)} II={int(saved['interrupt_shadow'])} A20=1 SMM=0 HLT={int(saved['halted'])}"
    yield from _x86_general(values, is_64)
    name, digits, short = ("RIP", 16, "RFL") if is_64 else ("EIP", 8, "EFL")
    yield f"{name}={values['rip']:0{digits}x} {short}={values['rflags'] & 0xFFFFFFFF:08x} [{flags}] {state}"
    for segment in (*_SEGMENTS, "ldtr", "tr"):
        yield _segment(segment, values, is_64, is_long)
    digits = 16 if is_long else 8
    for table in ("gdtr", "idtr"):
        base, limit = values[f"{table}_base"], values[f"{table}_limit"]
        yield f"{table[:3].upper()}=     {base:0{digits}x} {limit:08x}"
    yield (
        f"CR0={values['cr0'] & 0xFFFFFFFF:08x} CR2={values['cr2']:0{digits}x} "
        f"CR3={values['cr3']:0{digits}x} CR4={values['cr4'] & 0xFFFFFFFF:08x}"
    )
    yield "".join(f"DR{number}={values[f'dr{number}']:016x} " for number in range(4))
    yield f"DR6={values['dr6']:016x} DR7={values['dr7']:016x}"
    yield f"EFER={values['efer']:016x}"
    yield from _x86_floating(values, 16 if is_64 else 8)


def _privilege(values: Mapping[str, int]) -> int:
    """The current level is that of the stack's segment; in real mode it is 0."""
    return values["ss_flags"] >> 13 & 3 if values["cr0"] & 1 else 0


def _x86_general(values: Mapping[str, int], is_64: bool) -> Iterator[str]:
    rows = [("ax", "bx", "cx", "dx"), ("si", "di", "bp", "sp")]
    for row in rows:
        if is_64:
            yield " ".join(f"R{name.upper()}={values[f'r{name}']:016x}" for name in row)
        else:
            yield " ".join(f"E{name.upper()}={values[f'r{name}'] & 0xFFFFFFFF:08x}" for name in row)
    if is_64:
        for first in (8, 12):
            yield " ".join(f"{f'R{n}':<3}={values[f'r{n}']:016x}" for n in range(first, first + 4))


def _segment(name: str, values: Mapping[str, int], is_64: bool, is_long: bool) -> str:
    """Selector, base, limit and flags; in protected mode also what the flags say."""
    flags, base = values[f"{name}_flags"], values[f"{name}_base"]
    label = "LDT" if name == "ldtr" else name.upper()
    digits = 16 if is_64 else 8
    shown = f"{label:<3}={values[name] & 0xFFFF:04x} {base & (1 << 4 * digits) - 1:0{digits}x} "
    shown += f"{values[f'{name}_limit'] & 0xFFFFFFFF:08x} {flags & 0x00FFFF00:08x}"
    if not values["cr0"] & 1 or not flags & 1 << 15:
        return shown
    return f"{shown} DPL={flags >> 13 & 3} {_segment_kind(flags, is_long)}"


def _segment_kind(flags: int, is_long: bool) -> str:
    if not flags & 1 << 12:
        return (_SYSTEM_64 if is_long else _SYSTEM_32)[flags >> 8 & 15]
    second = "CR" if flags & 1 << 11 else "EW"  # conforming and readable, or expand-down and writable
    letters = (second[0] if flags & 1 << 10 else "-") + (second[1] if flags & 1 << 9 else "-")
    letters += "A" if flags & 1 << 8 else "-"
    if flags & 1 << 11:
        kind = "CS64" if flags & 1 << 21 else "CS32" if flags & 1 << 22 else "CS16"
    else:
        kind = "DS  " if flags & 1 << 22 or is_long else "DS16"
    return f"{kind} [{letters}]"


def _x86_floating(values: Mapping[str, int], vectors: int) -> Iterator[str]:
    top = values["fpu_top"]
    status = values["fpu_status"] & ~0x3800 | top << 11
    used = ~values["fpu_tags"] & 0xFF
    yield (f"FCW={values['fpu_control']:04x} FSW={status:04x} [ST={top}] FTW={used:02x} MXCSR={values['mxcsr']:08x}")
    low = (1 << 64) - 1
    for first in range(0, 8, 2):
        yield " ".join(
            f"FPR{number}={values[f'fpr{number}'] & low:016x} {values[f'fpr{number}'] >> 64:04x}"
            for number in (first, first + 1)
        )
    for first in range(0, vectors, 2):
        yield " ".join(
            f"XMM{number:02d}={values[f'xmm{number}'] >> 64:016x} {values[f'xmm{number}'] & low:016x}"
            for number in (first, first + 1)
        )


# -- PowerPC -----------------------------------------------------------------------------------------------------------


def _ppc(values: Mapping[str, int]) -> Iterator[str]:
    special = {name: values[f"spr_{number}"] for name, number in _SPECIAL.items()}
    yield (f"NIP {values['pc']:08x}   LR {values['lr']:08x} CTR {values['ctr']:08x} XER {values['xer']:08x} CPU#0")
    yield f"MSR {values['msr']:08x} HID0 {special['hid0']:08x}"
    for first in range(0, 32, 8):
        yield f"GPR{first:02d} " + " ".join(f"{values[f'r{n}']:08x}" for n in range(first, first + 8))
    condition = values["cr"]
    fields = "".join(f" {_condition(condition >> shift & 15)} " for shift in range(28, -4, -4))
    yield f"CR {condition:08x}  [{fields}]             RES {values['reservation']:08x}"
    for first in range(0, 32, 4):
        yield f"FPR{first:02d} " + " ".join(f"{values[f'f{n}']:016x}" for n in range(first, first + 4))
    yield f"FPSCR {values['fpscr']:08x}"
    yield f" SRR0 {special['srr0']:08x}  SRR1 {special['srr1']:08x}    PVR {special['pvr']:08x}"
    yield "".join(f"SPRG{number} {special[f'sprg{number}']:08x} " for number in range(4)).rstrip()
    for first in range(0, 16, 8):
        yield f"SR{first:02d} " + " ".join(f"{values[f'sr{n}']:08x}" for n in range(first, first + 8))
    yield f" SDR1 {special['sdr1']:08x}   DAR {special['dar']:08x}  DSISR {special['dsisr']:08x}"


def _condition(field: int) -> str:
    """Less, greater or equal, and the overflow."""
    letter = "L" if field & 8 else "G" if field & 4 else "E" if field & 2 else "-"
    return letter + ("O" if field & 1 else " ")
