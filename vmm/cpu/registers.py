"""The names under which registers are read and written from outside the guest.

`rax` … `r15`, `rip`, `rflags`, `cr0 cr2 cr3 cr4 cr8 efer`; each segment as `cs` (selector), `cs_base`, `cs_limit`,
`cs_flags` (bits 8 to 23 of a descriptor's second word), for `es cs ss ds fs gs ldtr tr`; `gdtr_base gdtr_limit
idtr_base idtr_limit`; the MSRs `kernel_gs_base star lstar cstar fmask tsc_aux sysenter_cs sysenter_esp sysenter_eip`.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.cpu.layout import (
    CR0_PE,
    CS,
    DS,
    ES,
    FS,
    GDT,
    GS,
    HF_LMA,
    HF_PE,
    IDT,
    LDT,
    SS,
    TR,
    CpuState,
)  # fmt: skip
from vmm.cpu.transitions import set_stopped_eflags

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
SEGMENTS = {"es": ES, "cs": CS, "ss": SS, "ds": DS, "fs": FS, "gs": GS, "ldtr": LDT, "tr": TR}
TABLES = {"gdtr": GDT, "idtr": IDT}
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
MSRS = (
    "kernel_gs_base", "star", "lstar", "cstar", "fmask", "tsc_aux", "sysenter_cs", "sysenter_esp", "sysenter_eip",
)  # fmt: skip

_HF_CR0_SHIFT, _CR0_MP_EM_TS = 8, 0x0E
_HF_OSFXSR, _CR4_OSFXSR, _EFER_LMA = 1 << 22, 1 << 9, 1 << 10


def read(state: CpuState, rflags: int) -> dict[str, int]:
    """All registers of a saved state.  `rflags` comes from Unicorn, which computes the arithmetic flags on demand."""
    values = {name: state.register(number) for number, name in enumerate(GENERAL)}
    values |= {"rip": state.eip, "rflags": rflags}
    for name, number in SEGMENTS.items():
        segment = state.segment(number)
        values |= {
            name: segment.selector,
            f"{name}_base": segment.base,
            f"{name}_limit": segment.limit,
            f"{name}_flags": segment.flags,
        }
    for name, number in TABLES.items():
        table = state.segment(number)
        values |= {f"{name}_base": table.base, f"{name}_limit": table.limit}
    return values | {name: getattr(state, name) for name in (*CONTROL, *MSRS)}


def write(state: CpuState, values: Mapping[str, int]) -> None:
    """Change registers of a CPU that does not run; what is not named stays.  KeyError for an unknown name."""
    known = read(state, state.eflags)
    for name in values:
        known[name]  # raises for a name that does not exist
    for number, name in enumerate(GENERAL):
        if name in values:
            state.set_register(number, values[name])
    state.eip = values.get("rip", state.eip)
    for name, number in {**SEGMENTS, **TABLES}.items():
        old = state.segment(number)
        new = old._replace(base=values.get(f"{name}_base", old.base), limit=values.get(f"{name}_limit", old.limit))
        if number not in TABLES.values():
            new = new._replace(selector=values.get(name, old.selector), flags=values.get(f"{name}_flags", old.flags))
        state.set_segment(number, new)
    for name in (*CONTROL, *MSRS):
        setattr(state, name, values.get(name, known[name]))
    set_stopped_eflags(state, values.get("rflags", state.eflags))
    _recompute_hflags(state)


def _recompute_hflags(state: CpuState) -> None:
    """The translator's flags from the registers they are copies of."""
    cr0 = state.cr0
    hflags = state.hflags & ~(HF_PE | HF_LMA | _CR0_MP_EM_TS << _HF_CR0_SHIFT | _HF_OSFXSR)
    hflags |= HF_PE if cr0 & CR0_PE else 0
    hflags |= (cr0 & _CR0_MP_EM_TS) << _HF_CR0_SHIFT
    hflags |= HF_LMA if state.efer & _EFER_LMA else 0
    hflags |= _HF_OSFXSR if state.cr4 & _CR4_OSFXSR else 0
    state.hflags = hflags
    state.load_segment(CS, state.segment(CS))
    state.load_segment(SS, state.segment(SS))
