"""How a run can be driven from outside, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.control.address import Address


@dataclass(frozen=True, slots=True)
class ControlOptions:
    """Where each protocol is served, and what the run is called; with `paused` it begins paused."""

    name: str = ""
    qmp: tuple[Address, ...] = ()
    monitor: tuple[Address, ...] = ()
    gdb: tuple[Address, ...] = ()
    metrics: tuple[Address, ...] = ()
    paused: bool = False

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All of them."""
        return (*self.qmp, *self.monitor, *self.gdb, *self.metrics)

    @property
    def on_stdio(self) -> int:
        """How many protocols want the standard input and output."""
        return sum(address.kind == "stdio" for address in self.addresses)


NOT_DRIVEN = ControlOptions()
