"""The host bridge: bus 0, configuration mechanism #1 (PCI 3.0 §3.2.2.3.2) and the reset control register.

Owns the ports CF8h to CFFh, which function sits in which slot, and which of their ranges are in the two address spaces.
Refuses to know what the functions do.

- CF8h takes the configuration address, by an access of four bytes at CF8h only; CFCh to CFFh are the data, of any
  width.
- CF9h, by an access of one byte only, is the reset control register: setting bit 2 asks for a reset.
- Anything else at CF8h to CFBh finds nobody: reads give ones, writes vanish.

After every configuration write the bridge compares what the functions decode with what is mapped, gives up what is no
longer decoded, and then maps what is new.  A range that would cover RAM or anything that is mapped already stays out,
one event says what it collided with, and every later configuration write tries again.
"""

from __future__ import annotations

from typing import Any, ClassVar

from devices.bus import AddressSpace, Range
from devices.effects import NOTHING, Effects, Event, Stop, StopKind
from devices.errors import ConfigError
from devices.memory import GuestMemory
from devices.pci.function import BarRegion, PciFunction
from devices.pci.i440fx import I440fx
from devices.state import TEXT, Many, Pairs, State, Stateful, Table, Tuple, require_fields, uint

PORT_BASE = 0xCF8
PORT_COUNT = 8
RESET_CONTROL_PORT = 0xCF9
RESET_HARD = 1 << 1
RESET_NOW = 1 << 2

_ADDRESS_ENABLE = 1 << 31
_ADDRESS_WRITABLE = 0x80FFFFFC

_Key = tuple[int, int]  # device and function number, base address register
_KEY = Tuple(uint(8), uint(8))


class HostBridge(Stateful):
    """Bus 0 between `ports` and `mmio`, where no range may cover `ram`.

    It claims its ports itself and puts its own function, an i440FX, into slot 0; `functions` go by device and function
    number (`PciFunction.devfn`).  Whatever else is fixed (the interrupt
    controller, the ROM) claims its range in `mmio` and is thereby safe from the functions.
    """

    STATE: ClassVar[Table] = {
        "config_address": uint(32),
        "reset_control": uint(8),
        "_refused": Pairs(_KEY, TEXT),
    }
    BESIDE: ClassVar = ("functions", "mapped")
    _ORDER: ClassVar = Many(_KEY, longest=256)

    def __init__(self, ports: AddressSpace, mmio: AddressSpace, ram: GuestMemory) -> None:
        self._spaces = {"port": ports, "memory": mmio}
        self._ram = ram
        self._mapped: dict[_Key, tuple[BarRegion, Range]] = {}
        self._refused: dict[_Key, str] = {}
        self.functions: dict[int, PciFunction] = {}
        self.config_address = 0
        self.reset_control = 0
        self.plug(I440fx())
        ports.add(PORT_BASE, PORT_COUNT, self, "PCI configuration")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HostBridge) and self._state() == other._state()

    def _state(self) -> tuple[object, ...]:
        mapped = {key: region for key, (region, _) in self._mapped.items()}
        return self.config_address, self.reset_control, self.functions, mapped, self._refused

    def plug(self, function: PciFunction) -> None:
        """Put `function` into its slot and map what it decodes.  ConfigError when the slot is taken."""
        if function.devfn in self.functions:
            other = self.functions[function.devfn].name
            raise ConfigError(f"{function.name} cannot be at {function.address}: {other} is there already")
        self.functions[function.devfn] = function
        self._remap()

    def reset(self) -> Effects:
        """Reset the bus with every function on it; nothing stays mapped."""
        effects = NOTHING
        for function in self.functions.values():
            effects |= function.reset()
        self.config_address = self.reset_control = 0
        return effects | self._remap()

    # -- the state: also the functions, and which of their ranges were mapped first --------------------------------

    def save_state(self) -> State:
        functions: State = {f"{devfn:02x}": function.save_state() for devfn, function in self.functions.items()}
        return {**super().save_state(), "functions": functions, "mapped": self._ORDER.save(self._mapped)}

    def check_state(self, saved: Any, where: str) -> None:
        super().check_state(saved, where)
        functions = require_fields(
            f"{where}.functions", saved["functions"], [f"{devfn:02x}" for devfn in self.functions]
        )
        for devfn, function in self.functions.items():
            function.check_state(functions[f"{devfn:02x}"], function.name)
        self._ORDER.check((), saved["mapped"], f"{where}.mapped")

    def restore_state(self, saved: Any) -> None:
        for devfn, function in self.functions.items():
            function.restore_state(saved["functions"][f"{devfn:02x}"])
        for region, claimed in self._mapped.values():
            self._spaces[region.space].remove(claimed)
        self._mapped.clear()
        wanted = self._wanted()
        for key in self._ORDER.restore((), saved["mapped"]):
            if key in wanted:
                self._map(key, wanted[key])
        super().restore_state(saved)

    # -- ports CF8h to CFFh ------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """Answer a port read; `offset` counts from CF8h."""
        if (offset, size) == (0, 4):
            return self.config_address, NOTHING
        if (offset, size) == (1, 1):
            return self.reset_control, NOTHING
        floating = min(size, max(4 - offset, 0))
        ones = (1 << 8 * floating) - 1
        if floating == size:
            return ones, NOTHING
        value, effects = self._read_data(offset + floating - 4, size - floating, now_ns)
        return value << 8 * floating | ones, effects

    def write(self, offset: int, size: int, value: int, now_ns: int) -> Effects:
        """Answer a port write; `offset` counts from CF8h."""
        if (offset, size) == (0, 4):
            self.config_address = value & _ADDRESS_WRITABLE
            return NOTHING
        if (offset, size) == (1, 1):
            return self._write_reset_control(value)
        floating = min(size, max(4 - offset, 0))
        if floating == size:
            return NOTHING
        return self._write_data(offset + floating - 4, size - floating, value >> 8 * floating, now_ns)

    def _write_reset_control(self, value: int) -> Effects:
        """Bit 2 resets as it goes from 0 to 1; bit 1 only remembers whether that should be a hard reset."""
        fires = value & ~self.reset_control & RESET_NOW
        self.reset_control = value & (RESET_HARD | RESET_NOW)
        return Effects(stop=Stop(StopKind.RESET)) if fires else NOTHING

    def _read_data(self, position: int, size: int, now_ns: int) -> tuple[int, Effects]:
        address = self.config_address
        if not address & _ADDRESS_ENABLE:
            return (1 << 8 * size) - 1, NOTHING
        return self.read_function(address >> 8 & 0xFFFF, (address & 0xFC) + position, size, now_ns)

    def _write_data(self, position: int, size: int, value: int, now_ns: int) -> Effects:
        address = self.config_address
        if not address & _ADDRESS_ENABLE:
            return NOTHING
        return self.write_function(address >> 8 & 0xFFFF, (address & 0xFC) + position, size, value, now_ns)

    # -- configuration space, whichever way an access came ----------------------------------------------------------

    def read_function(self, number: int, offset: int, size: int, now_ns: int) -> tuple[int, Effects]:
        """`size` bytes at `offset` of the function `number` (bus, device and function in 16 bits); all ones if there
        is none."""
        function = self.functions.get(number)
        if function is None:
            return (1 << 8 * size) - 1, NOTHING
        return function.read_config(offset, size, now_ns)

    def write_function(self, number: int, offset: int, size: int, value: int, now_ns: int) -> Effects:
        """Write to the configuration space of the function `number`, and map what it decodes now."""
        function = self.functions.get(number)
        if function is None:
            return NOTHING
        return function.write_config(offset, size, value, now_ns) | self._remap()

    # -- the address spaces ------------------------------------------------------------------------------------------

    def _remap(self) -> Effects:
        """Make the address spaces hold what the functions decode; returns one event for each new collision."""
        wanted = self._wanted()
        # Give up first, so that two ranges can change places.
        for key, (region, claimed) in list(self._mapped.items()):
            if wanted.get(key) != region:
                self._spaces[region.space].remove(claimed)
                del self._mapped[key]
        refused, self._refused = self._refused, {}
        events = []
        for key, region in wanted.items():
            if key not in self._mapped and (reason := self._map(key, region)):
                self._refused[key] = reason
                if refused.get(key) != reason:
                    events.append(Event(self.functions[key[0]].name, "bar-not-mapped", reason))
        return Effects(events=tuple(events)) if events else NOTHING

    def _wanted(self) -> dict[_Key, BarRegion]:
        """What the functions decode now."""
        return {(devfn, r.bar): r for devfn, function in self.functions.items() for r in function.bar_regions()}

    def _map(self, key: _Key, region: BarRegion) -> str | None:
        """Map `region`, or say why not."""
        end = region.base + region.length
        if region.space == "memory":
            for ram in self._ram.regions:
                if ram.gpa < end and region.base < ram.end:
                    return (
                        f"{region.owner} at {region.base:#x}-{end - 1:#x} overlaps {self._ram.name} "
                        f"at {ram.gpa:#x}-{ram.end - 1:#x} in the memory space"
                    )
        try:
            claimed = self._spaces[region.space].add(region.base, region.length, region.handler, region.owner)
        except ValueError as error:  # an overlap, or an address that the space does not have
            return str(error)
        self._mapped[key] = region, claimed
        return None
