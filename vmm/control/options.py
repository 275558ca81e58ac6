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


NOT_DRIVEN = ControlOptions()
