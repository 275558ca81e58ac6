"""How interrupt lines reach the processor: 8259 pair, I/O APIC and local APIC as a board connects them.

Owns the levels of all lines and the way each one takes; the tables come from the board.  Refuses to know which device
drives a line, and what the controllers do with their inputs.

- An ISA line goes to the input of the 8259 pair with its number and to the I/O APIC's pin with that number; the timer,
  line 0, goes to pin 2, because pin 0 is not connected and the 8259's input 2 is the cascade.
- A PCI line is one of PIRQA to PIRQD.  Those go to the I/O APIC's pins 16 to 19, and to whatever input of the 8259 pair
  the ISA bridge's routing registers name.  Several lines on one input are one level: any of them asserts it.
- The 8259's INTR is the local APIC's LINT0.  The processor's acknowledge goes to the local APIC if that has a vector to
  deliver, else to the 8259.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

from devices.effects import NOTHING, Effects
from devices.irq.ioapic import IoApic
from devices.irq.lapic import LocalApic
from devices.irq.pic import PicPair
from devices.state import FLAG, PART, TEXT, Pairs, Stateful, Table

PIRQS = 4
FIRST_PIRQ_PIN = 16
ISA_INPUTS = 16
TIMER_LINE, TIMER_PIN = 0, 2


class PirqRouter(Protocol):
    """Who says where PIRQA to PIRQD go: for each an input of the 8259 pair, or None."""

    @property
    def pirq_routes(self) -> tuple[int | None, ...]: ...


class InterruptWiring(Stateful):
    """`isa` gives the number of each ISA line by its name, `pirq` the index (0 to 3) of each PCI line.

    Lines in neither table lead nowhere.
    """

    STATE: ClassVar[Table] = {"pic": PART, "ioapic": PART, "levels": Pairs(TEXT, FLAG)}

    def __init__(self, isa: Mapping[str, int], pirq: Mapping[str, int], router: PirqRouter, lapic: LocalApic) -> None:
        self.lapic = lapic
        self.pic = PicPair()
        self.ioapic = IoApic()
        self._isa = dict(isa)
        self._pirq = dict(pirq)
        self._router = router
        self.levels: dict[str, bool] = {}

    # -- the devices' side ---------------------------------------------------------------------------------------------

    def set_line(self, name: str, level: bool) -> Effects:
        """A line has a new level.  Returns the messages that follow."""
        self.levels[name] = level
        if name in self._isa:
            number = self._isa[name]
            self._update_input(number)
            return self.ioapic.set_pin(TIMER_PIN if number == TIMER_LINE else number, level) | self.refresh()
        if name in self._pirq:
            index = self._pirq[name]
            route = self._router.pirq_routes[index]
            if route is not None:
                self._update_input(route)
            return self.ioapic.set_pin(FIRST_PIRQ_PIN + index, self._pirq_level(index)) | self.refresh()
        return NOTHING

    def rewire(self) -> Effects:
        """The ISA bridge routes the PIRQs in another way now."""
        for number in range(ISA_INPUTS):
            self._update_input(number)
        return self.refresh()

    def end_of_interrupt(self, vector: int) -> Effects:
        """The local APIC has ended the service of a level-triggered vector."""
        return self.ioapic.end_of_interrupt(vector)

    def _pirq_level(self, index: int) -> bool:
        return any(self.levels.get(name, False) for name, number in self._pirq.items() if number == index)

    def _update_input(self, number: int) -> None:
        """Derive the level of one input of the 8259 pair from everything that is wired to it."""
        if number == 2:
            return  # the cascade is no input
        level = any(self.levels.get(name, False) for name, isa in self._isa.items() if isa == number)
        routes = self._router.pirq_routes
        level = level or any(route == number and self._pirq_level(i) for i, route in enumerate(routes))
        self.pic.set_line(number, level)

    # -- the processor's side ------------------------------------------------------------------------------------------

    def refresh(self) -> Effects:
        """Carry INTR to LINT0; to be called after everything that may have changed the 8259 pair."""
        return self.lapic.set_lint0(self.pic.intr)

    def is_pending(self) -> bool:
        """Whether an interrupt waits for the processor."""
        self.refresh()
        return self.lapic.pending_vector() is not None or self.lapic.external_pending

    def acknowledge(self) -> int:
        """The vector that the processor takes; the local APIC's spurious one when nothing waits any more."""
        if self.lapic.pending_vector() is None and self.lapic.external_pending:
            vector = self.pic.acknowledge()
            self.refresh()
            return vector
        return self.lapic.acknowledge()

    # -- resetting -----------------------------------------------------------------------------------------------------

    def reset(self) -> Effects:
        """Reset the controllers; the lines keep their levels."""
        return self.pic.reset() | self.ioapic.reset() | self.lapic.reset() | self.refresh()
