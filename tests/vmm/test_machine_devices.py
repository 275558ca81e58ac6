"""What the devices of a whole machine do to it: device errors as an outcome, and interrupt messages that go elsewhere.

The guest only spins or sleeps; the driver library plays its driver, through the same calls that the CPU makes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vmm
from vmm.machine import Machine
from vmm.pc_platform import PcPlatform
from vmm.testing import BalloonDriver, PageAllocator, PciTransport
from vmm.testing.protocols import Memory
from vmm.testing.raw import NEXT, RawQueue

BALLOON_ID = 5
CODE_GPA = 0x100000  # where a flat image lies
SPIN = bytes.fromhex("eb fe")  # jmp .
SLEEP = bytes.fromhex("fb f4 eb fc")  # sti; again: hlt; jmp again
HALT = bytes.fromhex("fa f4 eb fd")  # cli; hlt; jmp back


class GuestsBus:
    """The machine's buses as its guest sees them; interrupts arrive in the machine and not here."""

    def __init__(self, machine: Machine) -> None:
        self.memory: Memory = machine.memory
        assert isinstance(machine.platform, PcPlatform)
        self.port_read, self.port_write = machine.platform.port_read, machine.platform.port_write
        self.mmio_read, self.mmio_write = machine.platform.mmio_read, machine.platform.mmio_write

    def listen(self, address: int, callback: Callable[[int], None]) -> None:
        """Nobody hears messages on this side."""

    def line_level(self, name: str) -> bool:
        return False


def driven(path: Path, code: bytes, **options: object) -> tuple[Machine, BalloonDriver, PciTransport]:
    """A machine whose guest runs `code`, after 10 ms, and a driver that has started the balloon."""
    path.write_bytes(code)
    machine = vmm.boot(path, **options)  # type: ignore[arg-type]
    assert machine.run("10ms") is None
    transport = PciTransport.find(GuestsBus(machine), BALLOON_ID, PageAllocator(0x200000, 0x100000))
    driver = BalloonDriver(transport)
    driver.start()
    return machine, driver, transport


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return tmp_path / "guest.bin"


@pytest.mark.parametrize("duration", ["20ms", None])
def test_a_device_that_still_needs_a_reset_makes_the_end_a_failure(flat: Path, duration: str | None) -> None:
    machine, driver, _ = driven(flat, SLEEP, duration=duration)
    with machine:
        queue = RawQueue(driver)
        queue.available_index(queue.size + 1)
        queue.kick()
        outcome = machine.run()
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("device-error", 5)
        assert "balloon0 still needs a reset" in outcome.detail


def test_a_device_that_was_reset_after_its_error_is_no_failure(flat: Path) -> None:
    machine, driver, _ = driven(flat, SLEEP, duration="20ms")
    with machine:
        queue = RawQueue(driver)
        queue.available_index(queue.size + 1)
        queue.kick()
        driver.transport.write_status(0)
        outcome = machine.run()
        assert outcome is not None and (outcome.kind, outcome.exit_code) == ("deadline", 0)


def test_a_message_written_over_running_code_is_what_runs_next(flat: Path) -> None:
    """An MSI-X message goes where its entry points, into RAM too, and the CPU must not run the code that was there."""
    machine, _, transport = driven(flat, SPIN, duration="30ms")
    with machine:
        assert transport.msix is not None
        transport.msix.point(0, CODE_GPA, int.from_bytes(HALT, "little"))
        machine.balloon.set_target("32M")  # a change of the configuration is vector 0
        assert machine.memory.read(CODE_GPA, 4) == HALT
        outcome = machine.run()
        assert outcome is not None and outcome.kind == "halted"


def test_a_message_to_a_device_is_an_access_to_it(flat: Path) -> None:
    """The configuration's vector points at the inflateq's notify register: a target then kicks the queue."""
    machine, driver, transport = driven(flat, SLEEP, duration="20ms")
    with machine:
        queue = RawQueue(driver)
        queue.descriptor(0, queue.buffer((0x300).to_bytes(4, "little")), 4)
        queue.available(0)
        assert queue.heads_returned() == []
        assert transport.msix is not None
        transport.msix.point(0, transport.notify_gpa(0), 0)
        machine.balloon.set_target("32M")
        assert queue.heads_returned() == [0]


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ("", {28, 29, 32, 40}),
        ("packed=on,in_order=on,notification-data=on", {28, 29, 32, 34, 35, 38, 40}),
        ("indirect_desc=off,event_idx=off,queue_reset=off", {32}),
    ],
)
@pytest.mark.parametrize("driver", ["virtio-balloon-pci", "virtio-rng-pci"])
def test_the_features_of_rings_follow_their_properties(flat: Path, driver: str, options: str, bits: set[int]) -> None:
    """§6: INDIRECT_DESC 28, EVENT_IDX 29, VERSION_1 32, RING_PACKED 34, IN_ORDER 35, NOTIFICATION_DATA 38, RING_RESET
    40; without properties what QEMU offers."""
    flat.write_bytes(SPIN)
    with vmm.boot(flat, devices=(f"{driver},{options}".rstrip(","),)) as machine:
        offered = machine.board.virtio_devices[0].device_features
    assert {bit for bit in range(24, 64) if offered >> bit & 1} == bits


# -- guest errors by policy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "needs_reset", "skipped", "dropped"),
    [
        ("", True, 0, 0),
        ("guest-errors=reset", True, 0, 0),
        ("guest-errors=skip", False, 1, 0),
        ("guest-errors=ignore", False, 0, 1),
        ("profile=qemu", True, 0, 0),
        ("profile=cloud-hypervisor", False, 0, 0),
    ],
)
def test_the_command_says_what_becomes_of_a_loop(
    tmp_path: Path, properties: str, needs_reset: bool, skipped: int, dropped: int
) -> None:
    """The report counts it, and a machine that takes over the state goes on from there."""
    device = ",".join(filter(None, ["virtio-balloon-pci,id=balloon0", properties]))
    machine, driver, _ = driven(tmp_path / "sleep.bin", SLEEP, devices=[device])
    raw = RawQueue(driver)
    raw.descriptor(1, raw.buffer(bytes(4)), 4, NEXT, 1)
    raw.available(1)
    raw.kick()
    assert driver.needs_reset == needs_reset
    (inflateq, *others) = machine.report()["queues"]
    assert (inflateq["name"], inflateq["skipped"], inflateq["dropped"]) == ("inflateq", skipped, dropped)
    assert all(queue["skipped"] == queue["dropped"] == 0 for queue in others)
    state = machine.save()
    with machine, vmm.boot(tmp_path / "sleep.bin", devices=[device]) as other:
        other.restore(state)
        assert other.report()["queues"] == machine.report()["queues"]
        assert other.save() == state
