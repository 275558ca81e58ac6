"""What Debian's kernel makes of the board's ACPI tables: its own words about them, and the power button."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot import debian
from tests.boot.guest import MOUNT, Linux

pytestmark = debian.needs_debian

MODULES = ("button", "evdev", "pvpanic", "pvpanic-mmio", "qemu_fw_cfg")
LOAD = "".join(f"insmod /lib/{name}.ko\n" for name in MODULES)
REPORT = """
ls /sys/bus/acpi/devices /sys/bus/platform/devices
ls /sys/firmware/qemu_fw_cfg/by_name
echo events: $(cat /sys/bus/platform/devices/QEMU0001:00/capability)
cat /proc/interrupts /proc/iomem
"""
WAIT = """
echo the button is awaited
dd if=/dev/input/event0 bs=24 count=1 of=/dev/null
cat /proc/interrupts
poweroff -f
"""


@pytest.fixture(
    scope="module", params={"io-apic": "", "8259 pair": "noapic pci=nomsi"}.values(), ids=["io-apic", "8259"]
)
def pressed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Linux]:
    """A guest whose button was pressed while it waited for that, and which has ended."""
    archive = debian.initramfs(MOUNT + LOAD + REPORT + WAIT, MODULES)
    with Linux(tmp_path_factory.mktemp("acpi"), archive, request.param, memory="160M") as guest:
        guest.wait_for("the button is awaited")
        assert guest.machine.run("500ms") is None, guest.tail()
        guest.machine.press_power_button()
        guest.run_to_the_end()
        yield guest


def test_the_power_button_is_heard_and_the_guest_powers_off(pressed: Linux) -> None:
    assert pressed.machine.outcome is not None
    assert (pressed.machine.outcome.kind, pressed.machine.outcome.exit_code) == ("powered-off", 0)
    asked, answered = pressed.console.split("the button is awaited")
    assert sci_count(asked) == 0
    assert sci_count(answered) == 1
    assert "ACPI: PM: Preparing to enter system sleep state S5" in answered
    assert [event.text for _, event in pressed.events if event.kind == "power-button"] == ["it is pressed"]


def sci_count(console: str) -> int:
    (line,) = (line for line in console.splitlines() if line.endswith(" acpi"))
    return int(line.split()[1])


def test_the_kernel_finds_no_fault_with_the_tables(pressed: Linux) -> None:
    found = [line for line in pressed.console.splitlines() if "ACPI" in line and ("Error" in line or "Warning" in line)]
    assert found == []
    assert "[Firmware Bug]" not in pressed.console


@pytest.mark.parametrize(
    "words",
    [
        "ACPI: PM-Timer IO Port: 0x608",
        "ACPI: PM: (supports S0 S5)",
        "PCI: MMCONFIG at [mem 0xc0000000-0xcfffffff] reserved in E820",
        "system 00:02: [mem 0xc0000000-0xcfffffff] has been reserved",
        "pci_bus 0000:00: root bus resource [mem 0xd0000000-0xfebfffff window]",
        "ACPI: PCI: Interrupt link LNKC configured for IRQ 11",
        "00:01: ttyS0 at I/O 0x3f8 (irq = 4, base_baud = 115200) is a 16550A",
        "i8042: PNP: No PS/2 controller found.",
        "rtc_cmos 00:00: setting system clock to 2009-11-18",
        "ACPI: button: Power Button [PWRF]",
        "ACPI Tables",
        "ACPI Non-volatile Storage",
        "events: 3",
        "QEMU0002:00",
        "opt",
    ],
)
def test_the_kernel_sees_the_board(pressed: Linux, words: str) -> None:
    assert words in pressed.console


def test_the_timer_and_the_sci_are_on_their_pins(pressed: Linux) -> None:
    overrides = [line.partition("INT_SRC_OVR ")[2] for line in pressed.console.splitlines() if "INT_SRC_OVR" in line]
    with_io_apic = ["(bus 0 bus_irq 0 global_irq 2 dfl dfl)", "(bus 0 bus_irq 9 global_irq 9 high level)"]
    assert overrides == ([] if "noapic" in pressed.cmdline else with_io_apic)


def test_a_press_at_a_given_time_ends_the_run(tmp_path: Path) -> None:
    """As `--powerdown 3s` asks for it."""
    with Linux(tmp_path, debian.initramfs(MOUNT + LOAD + WAIT, MODULES), memory="160M", powerdown="3s") as guest:
        outcome = guest.run_to_the_end()
        assert outcome.kind == "powered-off", guest.tail()
        assert 3 * 10**9 <= guest.machine.now_ns < 4 * 10**9
