"""The balloon's model once more, with a cut at any point: all devices are built anew and go on from the saved state.

The old devices are gone and RAM is overwritten in between, so that only what the state holds can carry the run on.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import precondition, rule

from devices.bus import AddressSpace
from devices.memory_state import MemoryState
from devices.pci.host_bridge import HostBridge
from devices.virtio.balloon import Balloon
from devices.virtio.transport.pci_modern import VirtioPciModern
from tests.hostile.test_balloon_model import BalloonModel
from tests.support import BALLOON_SLOT
from vmm.testing import BusBench


class CutModel(BalloonModel):
    """Everything the model does, and `cut`."""

    @precondition(lambda self: hasattr(self, "machine"))
    @rule()
    def cut(self) -> None:
        machine = self.machine
        assert isinstance(machine.bus.ports, AddressSpace)
        bridge = next(each.handler for each in machine.bus.ports.ranges if each.owner == "PCI configuration")
        assert isinstance(bridge, HostBridge)
        ram, devices = MemoryState(machine.memory).save_state(), bridge.save_state()
        backed = machine.memory.backed_bytes()

        for region in machine.memory.regions:
            machine.memory.write(region.gpa, b"\xcc" * region.size)
        ports, mmio = AddressSpace("port", 16), AddressSpace("memory", 52)
        rebuilt = HostBridge(ports, mmio, machine.memory)
        balloon = Balloon(machine.memory, features=machine.balloon.device_features)
        function = VirtioPciModern(balloon, BALLOON_SLOT)
        rebuilt.plug(function)

        memory = MemoryState(machine.memory)
        memory.check_state(ram, "memory")
        memory.restore_state(ram)
        rebuilt.check_state(devices, "bus")
        rebuilt.restore_state(devices)
        assert (rebuilt.save_state(), memory.save_state()) == (devices, ram)
        assert rebuilt == bridge and machine.memory.backed_bytes() == backed

        machine.bus.ports, machine.bus.mmio = ports, mmio
        machine.balloon, machine.function = balloon, function
        machine.bench = BusBench(machine.bus, machine.pci, function)


CutModel.TestCase.settings = settings(max_examples=30, stateful_step_count=40)
TestCutModel = CutModel.TestCase
