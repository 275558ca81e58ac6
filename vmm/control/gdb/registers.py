"""The registers that gdb sees: the target description, and their bytes in the packets `g`, `G`, `p` and `P`.

Numbers, names and order are those of QEMU's x86-64 machines, which gdb's users know: an x86-64 processor whatever mode
it is in.  `rip` is the offset in CS; in real mode, and wherever CS has a base, the place in memory is another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_X87_REGISTERS = 8
_CR0_PE = 1
_TAG_VALID, _TAG_ZERO, _TAG_SPECIAL, _TAG_EMPTY = range(4)
_TOP_SHIFT, _TOP_MASK = 11, 7
_X87_EXPONENT, _X87_INTEGER_BIT = 0x7FFF, 1 << 63
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")


@dataclass(frozen=True, slots=True)
class Register:
    """One register: gdb's `name`, its width, its type in the target description, and the feature that it belongs to."""

    name: str
    bits: int
    type: str
    feature: str = "org.gnu.gdb.i386.core"
    group: str = ""


def _registers() -> Iterator[Register]:
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi"):
        yield Register(name, 64, "int64")
    for name in ("rbp", "rsp"):
        yield Register(name, 64, "data_ptr")
    for number in range(8, 16):
        yield Register(f"r{number}", 64, "int64")
    yield Register("rip", 64, "code_ptr")
    yield Register("eflags", 32, "flags_register")
    for name in _SEGMENTS:
        yield Register(name, 32, "int32")
    for name in ("fs_base", "gs_base"):
        yield Register(name, 64, "int64", "org.gnu.gdb.i386.segments")
    for name in ("k_gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        yield Register(name, 64, _TYPES.get(name, "int64"), group="system")
    for number in range(_X87_REGISTERS):
        yield Register(f"st{number}", 80, "i387_ext", group="float")
    for name in ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop"):
        yield Register(name, 32, "int", group="float")
    for number in range(16):
        yield Register(f"xmm{number}", 128, "vec128", "org.gnu.gdb.i386.sse", "vector")
    yield Register("mxcsr", 32, "mxcsr_register", "org.gnu.gdb.i386.sse", "vector")


_FLAGS: dict[str, tuple[int, dict[int, str]]] = {
    "flags_register": (
        4,
        {
            0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF", 14: "NT", 16: "RF",
            17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID",
        },
    ),
    "cr0_register": (
        8,
        {0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG"},
    ),
    "cr4_register": (
        8,
        {
            0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR",
            10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 16: "FSGSBASE", 17: "PCIDE", 18: "OSXSAVE", 20: "SMEP",
            21: "SMAP",
        },
    ),
    "efer_register": (8, {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE"}),
    "mxcsr_register": (
        4,
        {
            0: "IE", 1: "DE", 2: "ZE", 3: "OE", 4: "UE", 5: "PE", 6: "DAZ", 7: "IM", 8: "DM", 9: "ZM", 10: "OM",
            11: "UM", 12: "PM", 15: "FZ",
        },
    ),
}  # fmt: skip
_TYPES = {"cr0": "cr0_register", "cr4": "cr4_register", "efer": "efer_register"}
_VECTOR = {"v4f": ("ieee_single", 4), "v2d": ("ieee_double", 2), "v16i8": ("int8", 16), "v8i16": ("int16", 8),
           "v4i32": ("int32", 4), "v2i64": ("int64", 2)}  # fmt: skip
_VECTOR_FIELDS = {"v4_float": "v4f", "v2_double": "v2d", "v16_int8": "v16i8", "v8_int16": "v8i16", "v4_int32": "v4i32",
                  "v2_int64": "v2i64", "uint128": "uint128"}  # fmt: skip
_TYPES_OF_FEATURE = {
    "org.gnu.gdb.i386.core": ("flags_register", "cr0_register", "cr4_register", "efer_register"),
    "org.gnu.gdb.i386.sse": ("mxcsr_register",),
}

REGISTERS = tuple(_registers())
#: gdb's names of what the processor calls otherwise
_OWN_NAMES = {"eflags": "rflags", "k_gs_base": "kernel_gs_base", "fctrl": "fpu_control"}
#: the x87's memory of its last instruction is not kept by Unicorn
_ALWAYS_ZERO = frozenset(("fiseg", "fioff", "foseg", "fooff", "fop"))


def target_xml() -> bytes:
    """The target description, format of gdb's manual, appendix G."""
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE target SYSTEM "gdb-target.dtd">',
        '<target version="1.0">',
        "<architecture>i386:x86-64</architecture>",
    ]
    for feature in dict.fromkeys(register.feature for register in REGISTERS):
        lines.append(f'<feature name="{feature}">')
        lines += [line for name in _TYPES_OF_FEATURE.get(feature, ()) for line in _flags_type(name)]
        if feature == "org.gnu.gdb.i386.sse":
            lines += [f'<vector id="{name}" type="{kind}" count="{n}"/>' for name, (kind, n) in _VECTOR.items()]
            fields = "".join(f'<field name="{name}" type="{kind}"/>' for name, kind in _VECTOR_FIELDS.items())
            lines.append(f'<union id="vec128">{fields}</union>')
        for number, register in enumerate(REGISTERS):
            if register.feature == feature:
                group = f' group="{register.group}"' if register.group else ""
                lines.append(
                    f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}" '
                    f'regnum="{number}"{group}/>'
                )
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""]).encode()


def _flags_type(name: str) -> list[str]:
    size, bits = _FLAGS[name]
    fields = (f'<field name="{flag}" start="{bit}" end="{bit}"/>' for bit, flag in bits.items())
    return [f'<flags id="{name}" size="{size}">', *fields, "</flags>"]


def read(values: Mapping[str, int], register: Register) -> bytes:
    """The bytes of one register, little-endian, from the processor's `values` by their names."""
    return _value(values, register.name).to_bytes(register.bits // 8, "little")


def read_all(values: Mapping[str, int]) -> bytes:
    """The bytes of all registers."""
    return b"".join(read(values, register) for register in REGISTERS)


def _value(values: Mapping[str, int], name: str) -> int:
    top = values["fpu_top"]
    if name.startswith("st"):
        return values[f"fpr{(top + int(name[2:])) % _X87_REGISTERS}"]
    if name == "fstat":
        return values["fpu_status"] & ~(_TOP_MASK << _TOP_SHIFT) | top << _TOP_SHIFT
    if name == "ftag":
        return sum(_tag(values, number) << 2 * number for number in range(_X87_REGISTERS))
    if name in _ALWAYS_ZERO:
        return 0
    return values[_OWN_NAMES.get(name, name)]


def _tag(values: Mapping[str, int], number: int) -> int:
    """SDM volume 1, 8.1.7."""
    if values["fpu_tags"] >> number & 1:
        return _TAG_EMPTY
    exponent, fraction = values[f"fpr{number}"] >> 64 & _X87_EXPONENT, values[f"fpr{number}"] & (1 << 64) - 1
    if exponent == 0 and fraction == 0:
        return _TAG_ZERO
    is_normal = exponent not in (0, _X87_EXPONENT) and fraction & _X87_INTEGER_BIT
    return _TAG_VALID if is_normal else _TAG_SPECIAL


class NotWritableError(ValueError):
    """A value that this register cannot be given from outside."""


def written(values: Mapping[str, int], register: Register, data: bytes) -> dict[str, int]:
    """What becomes of the processor's `values` when `register` is given the bytes `data`: those that change.

    In real mode a segment register takes its base along.  NotWritableError for another value of what cannot be changed:
    a segment register in protected mode, where its descriptor would have to follow, and the x87's addresses.
    ValueError for too few bytes, or too many."""
    name, value = register.name, int.from_bytes(data, "little")
    if len(data) != register.bits // 8:
        raise ValueError(data)
    if value == _value(values, name):
        return {}
    if name in _ALWAYS_ZERO or (name in _SEGMENTS and (values["cr0"] & _CR0_PE or value > 0xFFFF)):
        raise NotWritableError(name)
    if name in _SEGMENTS:
        return {name: value, f"{name}_base": value << 4}
    if name.startswith("st"):
        return {f"fpr{(values['fpu_top'] + int(name[2:])) % _X87_REGISTERS}": value}
    if name == "fstat":
        return {"fpu_status": value & 0xFFFF & ~(_TOP_MASK << _TOP_SHIFT), "fpu_top": value >> _TOP_SHIFT & _TOP_MASK}
    if name == "ftag":
        tags = range(_X87_REGISTERS)
        return {"fpu_tags": sum((value >> 2 * number & 3 == _TAG_EMPTY) << number for number in tags)}
    return {_OWN_NAMES.get(name, name): value & 0xFF if name == "cr8" else value & 0xFFFF if name == "fctrl" else value}
