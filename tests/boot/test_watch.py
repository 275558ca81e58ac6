"""What a watched Linux does that the specification forbids.

It notifies the statsq while it probes, and takes all of its pages back when the driver is unloaded, whatever the target
says.  Nothing else, whatever the host asks of it."""

from __future__ import annotations

from pathlib import Path

from tests.boot.balloon import INSERT, MIB, ask_for_stats, event_texts, reach
from tests.boot.debian import VIRTIO_MODULES, initramfs, needs_debian
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, Linux

pytestmark = needs_debian

DEVICE = "virtio-balloon-pci,id=balloon0,free-page-hint=on,free-page-reporting=on"


def test_linux_breaks_two_rules_and_no_others(tmp_path: Path) -> None:
    archive = initramfs(MOUNT + SHELL, VIRTIO_MODULES)
    with Linux(tmp_path, archive, "init_on_free=1", devices=(DEVICE,), watch_driver=True) as guest:
        guest.wait_for(SHELL_IS_UP)
        assert not guest.machine.breaches
        guest.ask(INSERT)
        (early,) = found = list(guest.machine.breaches)
        assert (early.id, early.rule.section, early.count) == ("G1", "3.1.1", 1)
        assert "statsq" in early.detail
        for size in (40 * MIB, 8 * MIB, 24 * MIB):
            reach(guest, size)
            ask_for_stats(guest)
        guest.machine.balloon.start_hinting()
        guest.run_until(lambda machine: machine.balloon.hint_command_id == 1)
        guest.machine.run("3s")
        assert list(guest.machine.breaches) == found
        guest.ask("rmmod virtio_balloon")
        unload = guest.machine.breaches[-1]
        assert (unload.id, unload.count) == ("R7", 24 * MIB // 4096)
        guest.machine.run("3s")
        assert [breach.id for breach in guest.machine.breaches] == ["G1", "R7"]
        assert len(event_texts(guest, "breach")) == 2
