"""The processor as a value: every register by name, and what else decides how it goes on.

`r0` … `r31`, `pc`, `lr`, `ctr`, `cr`, `xer`, `msr`, `fpscr`; `f0` … `f31` (64 bits); `sr0` … `sr15`; the block address
translation as `ibat0u ibat0l` … `dbat3l`; the special-purpose registers that a 604e has as `spr_NNN`
(their number, decimal); `reservation` is the address of LWARX, or all ones, and `reservation_value` what it read.

Translations and the TLB are no state: the tables that it is filled from lie in RAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unicorn import ppc_const

from devices.state import COUNTER, FLAG, Kind, State, require_fields, uint
from vmm.cpu import binding
from vmm.cpu.ppc.layout import BATS, PpcState

#: Those with a register behind them: DSISR DAR DECR SDR1 SRR0 SRR1, SPRG0 to SPRG3, EAR, PVR; performance monitor
#: MMCR0 PMC1 PMC2 SIA MMCR1 PMC3 PMC4 SDA; HID0 HID1 IABR DABR PIR
SPECIAL = (18, 19, 22, 25, 26, 27, *range(272, 276), 282, 287, *range(952, 960), 1008, 1009, 1010, 1013, 1023)
_BLOCKS = {"i": True, "d": False}
_SIXTY_FOUR_BITS = {f"f{number}" for number in range(32)}

FIELDS: dict[str, Kind] = {"halted": FLAG, "blocks": COUNTER}


def read(engine: binding.Engine, state: PpcState) -> dict[str, int]:
    """All registers of a processor that does not run."""
    engine.save()
    values = {f"r{number}": state.register(number) for number in range(32)}
    values |= {"pc": state.nip, "lr": state.lr, "ctr": state.ctr, "cr": state.condition, "xer": state.xer}
    values |= {"msr": state.msr, "fpscr": state.fpscr}
    values |= {f"f{number}": state.float(number) for number in range(32)}
    values |= {f"sr{number}": value for number, value in enumerate(state.segments)}
    for kind, instruction in _BLOCKS.items():
        for number, (upper, lower) in enumerate(state.blocks(instruction)):
            values |= {f"{kind}bat{number}u": upper, f"{kind}bat{number}l": lower}
    values |= {f"spr_{number}": state.special(number) for number in SPECIAL}
    values |= {"reservation": state.reserve_address, "reservation_value": state.reserve_value}
    return values


def write(engine: binding.Engine, state: PpcState, values: Mapping[str, int]) -> None:
    """Change some registers, by name; KeyError for a name that is none.  Between runs only."""
    unknown = set(values) - _NAMES
    if unknown:
        raise KeyError(min(unknown))
    values = {**read(engine, state), **values}
    for number in range(32):
        state.set_register(number, values[f"r{number}"])
        state.set_float(number, values[f"f{number}"])
    state.nip, state.lr, state.ctr = values["pc"], values["lr"], values["ctr"]
    state.condition, state.xer = values["cr"], values["xer"]
    state.segments = [values[f"sr{number}"] for number in range(16)]
    for kind, instruction in _BLOCKS.items():
        for number in range(BATS):
            state.set_block(instruction, number, values[f"{kind}bat{number}u"], values[f"{kind}bat{number}l"])
    for number in SPECIAL:
        state.set_special(number, values[f"spr_{number}"])
    state.reserve_address, state.reserve_value = values["reservation"], values["reservation_value"]
    state.tlb_need_flush = 0
    engine.restore()
    # What follows from these two is computed by Unicorn.
    engine.write_register(ppc_const.UC_PPC_REG_MSR, values["msr"])
    engine.write_register(ppc_const.UC_PPC_REG_FPSCR, values["fpscr"])
    engine.ctl(binding.CTL_FLUSH_TLB)


_NAMES = {
    *(f"{letter}{number}" for letter in "rf" for number in range(32)),
    *("pc", "lr", "ctr", "cr", "xer", "msr", "fpscr", "reservation", "reservation_value"),
    *(f"sr{number}" for number in range(16)),
    *(f"{kind}bat{number}{half}" for kind in _BLOCKS for number in range(BATS) for half in "ul"),
    *(f"spr_{number}" for number in SPECIAL),
}


def check(saved: Any, where: str) -> None:
    """ConfigError unless `saved` is the state of such a processor."""
    require_fields(where, saved, ["registers", *FIELDS])
    for name, kind in FIELDS.items():
        kind.check(None, saved[name], f"{where}.{name}")
    for name, value in require_fields(f"{where}.registers", saved["registers"], sorted(_NAMES)).items():
        uint(64 if name in _SIXTY_FOUR_BITS else 32).check(None, value, f"{where}.registers.{name}")


def state_of(engine: binding.Engine, state: PpcState, blocks: int, halted: bool) -> State:
    """The state of a processor that does not run."""
    return {"registers": {**read(engine, state)}, "halted": halted, "blocks": blocks}
