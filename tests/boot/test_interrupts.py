"""Debian's unmodified kernel at its shell, in each of the three ways in which a PC's devices interrupt."""

from __future__ import annotations

from tests.boot.debian import VIRTIO_MODULES, needs_debian
from tests.boot.guest import Linux

pytestmark = needs_debian


def test_the_shell_answers(shell: Linux) -> None:
    assert shell.ask("echo $((6 * 7))") == "42\n"


def test_the_kernel_s_own_modules_are_bound_to_the_balloon(shell: Linux) -> None:
    loaded = {line.split()[0] for line in shell.ask("cat /proc/modules").splitlines()}
    driver = shell.ask("readlink /sys/bus/virtio/devices/virtio0/driver")

    assert loaded == set(VIRTIO_MODULES)
    assert driver.strip().endswith("/virtio_balloon")
    assert shell.machine.balloon.actual_pages == 0
    assert not shell.machine.board.virtio_devices[0].needs_reset


def test_the_timer_the_console_and_the_balloon_interrupt_the_way_they_were_asked_to(shell: Linux, setup: str) -> None:
    before = shell.ask("cat /proc/interrupts")
    shell.machine.balloon.set_target("192M")
    shell.machine.run("100ms")
    after = shell.ask("cat /proc/interrupts")

    ways = {
        "msi-x": ("LOC", "IO-APIC", "PCI-MSI", {"virtio0-config", "virtio0-inflate"}),
        "intx": ("LOC", "IO-APIC", "IO-APIC", {"virtio0"}),
        "8259 and 8254": ("timer", "XT-PIC", "XT-PIC", {"virtio0"}),
    }
    timer, console_controller, device_controller, names = ways[setup]
    assert count(after, timer) > count(before, timer)
    assert console_controller in line(after, "ttyS0")
    for name in names:
        assert device_controller in line(after, name)
        assert count(after, name) > count(before, name)


def line(interrupts: str, name: str) -> str:
    """The line of /proc/interrupts that begins or ends with `name`."""
    (found,) = (row for row in interrupts.splitlines() if row.split()[-1] == name or row.split()[0] == f"{name}:")
    return found


def count(interrupts: str, name: str) -> int:
    return int(line(interrupts, name).split()[1])


def test_the_balloon_follows_its_target_both_ways(shell: Linux) -> None:
    for target, pages in (("128M", 128 << 8), ("256M", 0)):
        shell.machine.balloon.set_target(target)
        shell.ask("sleep 1")
        assert shell.machine.balloon.actual_pages == shell.machine.balloon.target_pages == pages


def test_the_kernel_has_nothing_to_complain_about(shell: Linux) -> None:
    assert shell.complaints == []


def test_its_time_stamp_counter_needed_no_measuring(shell: Linux) -> None:
    assert "tsc: Detected 1000.000 MHz processor" in shell.console
    assert shell.ask("cat /sys/devices/system/clocksource/clocksource0/current_clocksource") == "tsc\n"
    assert "Fast TSC calibration" not in shell.console


def test_the_date_is_the_board_s(shell: Linux) -> None:
    assert shell.ask("date -u +%F") == "2009-11-18\n"
