"""A PCI function: configuration header, base address registers, MSI-X and INTx (PCI 3.0 chapter 6).

Owns the meaning of the header's bits: what the command register lets through, where the base address registers ask to
be mapped, how the interrupt pin follows.  Refuses to know the address spaces (the host bridge maps what `bar_regions`
asks for) and what the ranges hold (a subclass answers `read_bar` and `write_bar`).

Invariants: the INTA level that was last handed out is always what the header says it should be; a function after
`reset` equals a freshly built one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from devices.bus import Handler
from devices.effects import NOTHING, Effects, Line
from devices.pci.config import (
    COMMAND_BUS_MASTER,
    COMMAND_INTX_DISABLE,
    COMMAND_IO,
    COMMAND_MEMORY,
    STATUS_INTERRUPT,
    Bar,
    BarKind,
    Capability,
    ConfigSpace,
    Field,
    Identity,
    header_fields,
)
from devices.pci.msix import MsixTable
from devices.state import FLAG, PART, Stateful, Table

SLOTS = 32
FUNCTIONS = 8

Space = Literal["memory", "port"]


@dataclass(frozen=True, slots=True)
class BarRegion:
    """`length` addresses from `base` on that base address register `bar` decodes now; `owner` names it for people."""

    space: Space
    base: int
    length: int
    bar: int
    owner: str
    handler: Handler = field(compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """The bus handler of one base address register."""

    function: PciFunction
    bar: int

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        return self.function.access_read(self.bar, offset, size, now_ns)

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        return self.function.access_write(self.bar, offset, size, value, now_ns)


class PciFunction(Stateful):
    """Function `function` (0 to 7) of device `slot` (0 to 31) on bus 0, called `name`.

    `msix` brings its own base address register and capability.  `interrupt_pin` is 0 for none or 1 for INTA.  `fields`
    are registers of its own from 40h on, which leave no room for a capability.  Function 0 says with `multifunction`
    that it is not the only one.
    """

    STATE: ClassVar[Table] = {"config": PART, "msix": PART, "_interrupt_requested": FLAG, "_inta": FLAG}

    def __init__(
        self,
        slot: int,
        name: str,
        identity: Identity,
        *,
        bars: Sequence[Bar] = (),
        capabilities: Sequence[Capability] = (),
        msix: MsixTable | None = None,
        interrupt_pin: int = 0,
        function: int = 0,
        multifunction: bool = False,
        fields: Sequence[Field] = (),
    ) -> None:
        if not 0 <= slot < SLOTS:
            raise ValueError(f"the slot of {name} must be 0 to {SLOTS - 1}, not {slot}")
        if not 0 <= function < FUNCTIONS:
            raise ValueError(f"the function number of {name} must be 0 to {FUNCTIONS - 1}, not {function}")
        if msix is not None:
            bars, capabilities = (*bars, msix.bar), (msix.capability(), *capabilities)
        self.slot = slot
        self.name = name
        self.devfn = slot << 3 | function
        self.address = f"00:{slot:02x}.{function}"
        self.bars = {bar.index: bar for bar in bars}
        self.msix = msix
        header = header_fields(identity, bars, capabilities, interrupt_pin, multifunction=multifunction)
        self.config = ConfigSpace((*header, *fields))
        self._interrupt_requested = False
        self._inta = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PciFunction) and type(self) is type(other) and vars(self) == vars(other)

    # -- hooks of a subclass -----------------------------------------------------------------------------------------

    def read_bar(self, bar: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """Answer a read inside a base address register's range; MSI-X structures never get here."""
        return 0, NOTHING

    def write_bar(self, bar: int, offset: int, size: int, value: int, now_ns: int) -> Effects:
        """Answer a write inside a base address register's range; MSI-X structures never get here."""
        return NOTHING

    def command_changed(self, now_ns: int) -> Effects:
        """Software has changed the command register."""
        return NOTHING

    # -- configuration space -----------------------------------------------------------------------------------------

    @property
    def bus_master(self) -> bool:
        """Whether the function may start transfers, messages included (PCI 3.0 §6.2.2)."""
        return bool(self.config["command"] & COMMAND_BUS_MASTER)

    def read_config(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """`size` bytes at `offset` of the configuration space."""
        return self.config.read(offset, size), NOTHING

    def write_config(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        """Write to the configuration space, and everything that follows from it except the mapping."""
        command = self.config["command"]
        self.config.write(offset, size, value)
        effects = NOTHING
        if self.msix is not None:
            effects |= self.msix.configure(self.config["msix.control"], self.bus_master)
        effects |= self._update_inta()
        if self.config["command"] != command:
            effects |= self.command_changed(now_ns)
        return effects

    def bar_regions(self) -> tuple[BarRegion, ...]:
        """What the function decodes now; empty where the command register gates it."""
        command = self.config["command"]
        regions = []
        for bar in self.bars.values():
            io = bar.kind is BarKind.IO
            base = bar.base(self.config[bar.name])
            if base is not None and command & (COMMAND_IO if io else COMMAND_MEMORY):
                owner = f"{self.name} BAR{bar.index}"
                handler = _Window(self, bar.index)
                regions.append(BarRegion("port" if io else "memory", base, bar.size, bar.index, owner, handler))
        return tuple(regions)

    def reset(self) -> Effects:
        """Back to the state after power-on.  The host bridge's own `reset` also takes the mappings away."""
        self.config.reset()
        if self.msix is not None:
            self.msix.reset()
        self._interrupt_requested = False
        return self._update_inta()

    # -- base address registers --------------------------------------------------------------------------------------

    def access_read(self, bar: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """A read that reaches base address register `bar`, however it got there."""
        if self.msix is not None and bar == self.msix.bar.index:
            return self.msix.read(offset, size), NOTHING
        return self.read_bar(bar, offset, size, now_ns)

    def access_write(self, bar: int, offset: int, size: int, value: int, now_ns: int) -> Effects:
        """A write that reaches base address register `bar`, however it got there."""
        if self.msix is not None and bar == self.msix.bar.index:
            return self.msix.write(offset, size, value)
        return self.write_bar(bar, offset, size, value, now_ns)

    # -- INTx --------------------------------------------------------------------------------------------------------

    def request_interrupt(self, requested: bool) -> Effects:
        """Ask for INTA, or no longer; the pin stays low while MSI-X is enabled or INTx disabled (PCI 3.0 §6.2.2)."""
        if requested == self._interrupt_requested:
            return NOTHING
        self._interrupt_requested = requested
        return self._update_inta()

    def _update_inta(self) -> Effects:
        """Derive the interrupt status bit, which INTx disable does not mask, and the pin's level."""
        wanted = self._interrupt_requested and not (self.msix is not None and self.msix.enabled)
        status = self.config["status"] & ~STATUS_INTERRUPT
        self.config["status"] = status | STATUS_INTERRUPT if wanted else status
        level = wanted and not self.config["command"] & COMMAND_INTX_DISABLE
        if level == self._inta:
            return NOTHING
        self._inta = level
        return Effects(lines=(Line(f"{self.address} INTA", level),))
