"""Debian's kernel over every transport and both rings, with all that a balloon can offer it: its own drivers find the
balloon, follow the target, report statistics and free memory, and hint free pages when the host asks.

Linux takes PAGE_POISON only where it fills free pages: booted with init_on_free=1 it does so with zeros.  The modern
device with split rings is that of all other tests; hints over it are in `test_hinting.py` too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from devices.virtio import spec
from tests.boot import debian
from tests.boot.balloon import (
    INSERT,
    MEMORY,
    MIB,
    PAGE_BYTES,
    RAM_BYTES,
    archive,
    ask_for_stats,
    backed_bytes,
    digest,
    event_texts,
    fill,
    host_tracks_writes,
    meminfo,
    reach,
    write_file,
)
from tests.boot.guest import SHELL_IS_UP, Linux
from tests.boot.poison import PCI_WINDOW, LegacyRegisters, Registers

pytestmark = debian.needs_debian


class Way(NamedTuple):
    """A device, words for the kernel, how its interrupts come, where the guest itself can look at the configuration
    space (Linux lets nobody at that of virtio-mmio), and which ring features it shall negotiate."""

    device: str
    words: str
    interrupts: str
    registers: Registers | None
    bits: tuple[int, ...] = (spec.VIRTIO_F_VERSION_1,)


MODERN = spec.VIRTIO_F_VERSION_1
PACKED = spec.VIRTIO_F_RING_PACKED
LEGACY = "virtio-balloon-pci,disable-legacy=off,disable-modern=on"
TRANSITIONAL = "virtio-balloon-pci,disable-legacy=off"
WAYS = {
    "modern, packed": Way("virtio-balloon-pci,packed=on", "", "PCI-MSI", PCI_WINDOW, (MODERN, PACKED)),
    "transitional": Way(TRANSITIONAL, "", "PCI-MSI", PCI_WINDOW),
    "transitional, packed, INTx": Way(
        TRANSITIONAL + ",packed=on", "pci=nomsi", "18-fasteoi", PCI_WINDOW, (MODERN, PACKED)
    ),
    "legacy, MSI-X": Way(LEGACY, "", "PCI-MSI", LegacyRegisters(24), ()),
    "legacy, INTx": Way(LEGACY, "pci=nomsi", "18-fasteoi", LegacyRegisters(20), ()),
    "virtio-mmio": Way("virtio-balloon-device", "", "12-fasteoi", None),
    "virtio-mmio, packed": Way("virtio-balloon-device,packed=on", "", "12-fasteoi", None, (MODERN, PACKED)),
    "virtio-mmio version 1, 8259": Way("virtio-balloon-device,force-legacy=on", "noapic", "XT-PIC", None, ()),
}
OFFERED = {
    spec.VIRTIO_BALLOON_F_MUST_TELL_HOST, spec.VIRTIO_BALLOON_F_STATS_VQ, spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT,
    spec.VIRTIO_BALLOON_F_PAGE_POISON, spec.VIRTIO_BALLOON_F_PAGE_REPORTING,
}  # fmt: skip
FILL_MIB = 80
DONE = 1


@pytest.mark.parametrize("name", WAYS)
def test_stock_linux_drives_the_balloon(name: str, tmp_path: Path) -> None:
    way = WAYS[name]
    device = way.device + ",id=balloon0,free-page-hint=on,free-page-reporting=on"
    words = f"init_on_free=1 {way.words}"
    with Linux(tmp_path, archive(("virtio_mmio",)), words, memory=MEMORY, devices=(device,)) as guest:
        guest.wait_for(SHELL_IS_UP)
        assert backed_bytes(guest) > RAM_BYTES * 99 // 100
        check_what_is_negotiated(guest, way)
        kept = write_file(guest, "/files/kept", 4)
        check_target_and_statistics(guest)
        check_reports(guest)
        check_a_round_of_hints(guest)
        check_hints_that_are_stopped(guest)
        if way.registers is not None:
            check_another_poison(guest, way.registers)
        assert digest(guest, "/files/kept") == kept
        assert guest.machine.balloon.bad_pfns == 0
        assert not [event for _, event in guest.events if event.kind == "needs-reset"]
        assert guest.complaints == []


def check_what_is_negotiated(guest: Linux, way: Way) -> None:
    """Both sides say the same, and the driver says what it fills free pages with before it is ready."""
    device = guest.machine.board.need_balloon()[1]
    with mock.patch.object(device, "write_poison_val", wraps=device.write_poison_val) as write:
        guest.ask(f"{INSERT}; insmod /lib/virtio_mmio.ko")
    assert {call.args[0] for call in write.call_args_list} == {0}, "the driver said so; a legacy one in four bytes"

    flags = guest.ask("cat /sys/bus/virtio/devices/virtio0/features").strip()
    bits = {bit for bit, flag in enumerate(flags) if flag == "1"}
    assert bits == {bit for bit in range(64) if device.negotiated_features >> bit & 1}
    assert bits & set(range(24)) == OFFERED
    assert bits & {MODERN, PACKED} == set(way.bits)
    assert way.interrupts in guest.ask("grep virtio0 /proc/interrupts")


def check_target_and_statistics(guest: Linux) -> None:
    balloon = guest.machine.balloon
    reach(guest, 32 * MIB)
    assert balloon.inflated_pages == 32 << 8
    if guest.machine.stats.reason != "ok":  # a legacy driver's first report says nothing
        balloon.request_stats()
        guest.machine.run("100ms")
    assert ask_for_stats(guest)["stat-total-memory"] == meminfo(guest)["MemTotal"] < RAM_BYTES - 32 * MIB
    reach(guest, 0)
    assert balloon.deflated_pages == 32 << 8


def check_reports(guest: Linux) -> None:
    """What is free goes back to the host, since its poison of 0 is what a page reads as that was given back.  All of
    the guest's RAM was backed when it was up, since the kernel had cleared it."""
    balloon = guest.machine.balloon
    guest.machine.run("10s")
    given = RAM_BYTES - backed_bytes(guest)
    assert FILL_MIB * MIB // 2 < given <= balloon.discarded_bytes
    assert balloon.reported_pages > FILL_MIB // 2 << 8
    assert balloon.poisoned_pages == 0


def check_a_round_of_hints(guest: Linux) -> None:
    """The driver names nearly all that is free and keeps it out of use until it is told that the round is done."""
    balloon = guest.machine.balloon
    fill(guest, FILL_MIB)
    free, backed, since = meminfo(guest)["MemFree"], backed_bytes(guest), len(guest.events)
    balloon.start_hinting(acknowledge=False)
    assert balloon.hint_command_id > DONE
    guest.run_until(lambda _: bool(event_texts(guest, "hinted", since)))
    hinted_bytes, discarded_bytes = (
        pages * PAGE_BYTES for pages in (balloon.hinted_pages, balloon.hint_discarded_pages)
    )
    given = backed - backed_bytes(guest)
    assert hinted_bytes > free - 40 * MIB and hinted_bytes % (4 * MIB) == 0
    if host_tracks_writes():
        assert discarded_bytes > hinted_bytes * 9 // 10
        assert FILL_MIB * MIB // 2 < given <= discarded_bytes
    else:
        assert discarded_bytes == 0
    assert free - meminfo(guest)["MemFree"] == pytest.approx(hinted_bytes, abs=4 * MIB), "they are out of use"

    balloon.done_hinting()
    guest.machine.run("100ms")
    assert balloon.hint_command_id == DONE
    assert meminfo(guest)["MemFree"] == pytest.approx(free, abs=4 * MIB), "the guest has them back"
    assert balloon.stale_hint_pages == 0


def check_hints_that_are_stopped(guest: Linux) -> None:
    """In the middle of a round, under the next id: the driver stops, and keeps what it named until DONE."""
    balloon = guest.machine.balloon
    free, known = meminfo(guest)["MemFree"], balloon.hinted_pages
    balloon.start_hinting(acknowledge=False)
    assert balloon.hint_command_id == DONE + 2, "the first was 2"
    while balloon.hinted_pages - known < 16 * MIB // PAGE_BYTES:
        guest.machine.run("10us")
    balloon.stop_hinting()
    hinted = balloon.hinted_pages - known
    assert hinted * PAGE_BYTES < free // 2, "it was not done yet"
    guest.machine.run("100ms")
    assert balloon.hinted_pages - known == hinted
    named = (hinted + balloon.stale_hint_pages) * PAGE_BYTES
    assert named < free // 2, "it heard of it"
    assert free - meminfo(guest)["MemFree"] == pytest.approx(named, abs=6 * MIB)
    balloon.done_hinting()
    guest.machine.run("100ms")
    assert meminfo(guest)["MemFree"] == pytest.approx(free, abs=4 * MIB)


def check_another_poison(guest: Linux, registers: Registers) -> None:
    """A driver that filled free pages with AAh would write so; what is reported then stays as it is."""
    balloon = guest.machine.balloon
    assert registers.read_poison_val(guest) == 0
    reported, discarded = balloon.reported_pages, balloon.discarded_bytes
    registers.write_poison_val(guest, 0xAAAAAAAA)
    assert registers.read_poison_val(guest) == 0xAAAAAAAA
    fill(guest, FILL_MIB)
    backed = backed_bytes(guest)
    guest.machine.run("5s")
    assert balloon.poisoned_pages == balloon.reported_pages - reported > FILL_MIB // 2 << 8
    assert (balloon.discarded_bytes, backed_bytes(guest)) == (discarded, backed)
