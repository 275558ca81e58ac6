"""Instructions as text, by capstone, which is an extra: without it one sentence says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vmm.control.monitor.complaints import Failure

if TYPE_CHECKING:
    from vmm.machine import Machine

MOST_INSTRUCTIONS = 4096
_LONGEST = {"x86_64": 15, "ppc": 4}
_SEG_L, _SEG_B = 1 << 21, 1 << 22

Read = Callable[[int, int], bytes]
"""Bytes at an address, as far as there is memory."""


def disassemble(machine: Machine, read: Read, address: int, count: int) -> str:
    """`count` instructions from `address` on, in the mode in which the processor is."""
    if count > MOST_INSTRUCTIONS:
        raise Failure(f"At most {MOST_INSTRUCTIONS} instructions can be shown at once\n")
    engine = _engine(machine)
    lines = []
    longest = _LONGEST[machine.config.arch]
    for _ in range(count):
        data = read(address, longest)
        if not data:
            lines.append(f"{address:#x}: unable to read memory\n")
            break
        size, text = _decode(engine, data, address)
        shown = " ".join(f"{byte:02x}" for byte in data[:size])
        lines.append(f"{address:#010x}:  {shown:<24} {text}\n")
        address = address + size & (1 << 64) - 1
    return "".join(lines)


def _decode(engine: Any, data: bytes, address: int) -> tuple[int, str]:
    found = next(engine.disasm_lite(data, address, 1), None)
    if found is None:
        return (1, f".byte    {data[0]:#04x}") if len(data) < 4 or engine.is_x86 else (4, f".long    0x{data.hex()}")
    _, size, mnemonic, operands = found
    return size, f"{mnemonic:<8} {operands}"


def _engine(machine: Machine) -> Any:
    try:
        import capstone
    except ImportError:
        raise Failure(
            "Asm output not supported on this arch: capstone is not installed, "
            "pip install 'balloon-vmm[disassembly]' brings it\n"
        ) from None
    if machine.config.arch == "ppc":
        made = capstone.Cs(capstone.CS_ARCH_PPC, capstone.CS_MODE_32 | capstone.CS_MODE_BIG_ENDIAN)
        made.is_x86 = False
        return made
    made = capstone.Cs(
        capstone.CS_ARCH_X86,
        {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32}.get(code_bits(machine.registers()), capstone.CS_MODE_16),
    )
    made.syntax = capstone.CS_OPT_SYNTAX_ATT
    made.is_x86 = True
    return made


def code_bits(registers: dict[str, int]) -> int:
    """64, 32 or 16: what an x86 processor takes its code for."""
    flags = registers["cs_flags"]
    if registers["efer"] & 1 << 10 and flags & _SEG_L:
        return 64
    return 32 if flags & _SEG_B else 16
