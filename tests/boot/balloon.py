"""Linux's own balloon driver as a user meets it: guests that booted once, and what both sides say about their memory.

The figures come from three witnesses that know nothing of each other: the guest's kernel (/proc), the device, and the
host's file system, which counts the blocks of the memory file.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Container
from itertools import product
from pathlib import Path

from devices import hostcalls
from tests.boot import debian
from tests.boot.guest import MOUNT, SHELL, SHELL_IS_UP, WITHOUT_APIC, Linux, Saved

MEMORY = "160M"
RAM_BYTES = 160 << 20
PAGE_BYTES = 4096
MIB = 1 << 20
FILES = "mkdir -p /files; mount -t tmpfs -o size=95% files /files\n"
SWAP_BYTES = 64 * MIB
SWAP_MODULES = ("zsmalloc", "lzo-rle", "zram")
INSERT = f"for name in {' '.join(debian.VIRTIO_MODULES)}; do insmod /lib/$name.ko; done"
PATTERN = random.Random(4).randbytes(MIB)
REPORTING_AND_OOM = "free-page-reporting=on,deflate-on-oom=on"
SETUPS = {"msi-x": "", "intx": "pci=nomsi", "8259 and 8254": WITHOUT_APIC}
KEPT_KINDS = tuple(product(("", REPORTING_AND_OOM), SETUPS.values()))  # those that several modules ask for
REMOVE = f"for name in {' '.join(reversed(debian.VIRTIO_MODULES))}; do rmmod $name; done"


def archive(more_modules: tuple[str, ...] = ()) -> bytes:
    """An initramfs with a shell, room for files, the drivers, and what a swap device in memory needs."""
    modules = (*debian.VIRTIO_MODULES, *SWAP_MODULES, *more_modules)
    files = {"lib/swap-header": _swap_header(), "lib/pattern": PATTERN}
    return debian.initramfs(MOUNT + FILES + SHELL, modules, files)


def _swap_header() -> bytes:
    """The first page of a swap area without a name; mkswap would wait for random numbers."""
    pages = SWAP_BYTES // PAGE_BYTES
    return bytes(1024) + struct.pack("<III", 1, pages - 1, 0).ljust(PAGE_BYTES - 1024 - 10, b"\0") + b"SWAPSPACE2"


class Guests:
    """Guests of one kind each, booted when first asked for; every call begins with a guest as it was then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._booted: dict[tuple[str, str], tuple[Linux, Saved | None, Saved]] = {}

    def bare(self, cmdline: str = "") -> Linux:
        """A guest at its shell without any virtio module, its balloon without properties."""
        guest, bare, _ = self._boot("", cmdline)
        assert bare is not None
        guest.restore(bare)
        return guest

    def loaded(self, properties: str = "", cmdline: str = "") -> Linux:
        """One with all of them loaded; `properties` are those of its balloon."""
        guest, _, loaded = self._boot(properties, cmdline)
        guest.restore(loaded)
        return guest

    def close(self, but: Container[tuple[str, str]] = ()) -> None:
        """End the guests, except for those of the kinds `but`."""
        for kind in [kind for kind in self._booted if kind not in but]:
            self._booted.pop(kind)[0].machine.close()

    def _boot(self, properties: str, cmdline: str) -> tuple[Linux, Saved | None, Saved]:
        kind = properties, cmdline
        if kind not in self._booted:
            device = ",".join(filter(None, ("virtio-balloon-pci,id=balloon0", properties)))
            guest = Linux(self._folder, archive(), cmdline, memory=MEMORY, devices=(device,)).__enter__()
            try:
                guest.wait_for(SHELL_IS_UP)
                bare = None if properties else guest.save()  # it takes as much memory as the guest's kernel
                guest.ask(INSERT)
            except BaseException:
                guest.machine.close()
                raise
            self._booted[kind] = guest, bare, guest.save()
        return self._booted[kind]


# -- what the guest says ---------------------------------------------------------------------------------------------


def meminfo(guest: Linux) -> dict[str, int]:
    """The lines of /proc/meminfo that matter here, in bytes; printing costs more time than most that is tested."""
    rows = re.findall(
        r"^(\S+):\s+(\d+) kB$", guest.ask("grep -E '^(Mem|Cached|Buffers|SwapCached)' /proc/meminfo"), re.MULTILINE
    )
    return {name: int(value) * 1024 for name, value in rows}


def vmstat(guest: Linux) -> dict[str, int]:
    """The same of /proc/vmstat: pages and counts."""
    lines = guest.ask("grep -E '^(pswp|pgfault|pgmajfault|htlb|oom_kill)' /proc/vmstat").splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


def kernel_threads(guest: Linux) -> list[str]:
    """Their names, in order; workers, which come and go with the work, are left out."""
    return sorted(name for _, name, _, parent in _tasks(guest, "grep -v ' (kworker/'") if parent == "2")


def stuck(guest: Linux) -> set[tuple[str, str, str, str]]:
    """Tasks that nothing can interrupt in their waiting, now and half a second later."""
    waiting = set(_tasks(guest, "grep ' D '"))
    if waiting:
        guest.machine.run("500ms")
        waiting &= set(_tasks(guest, "grep ' D '"))
    return waiting


def _tasks(guest: Linux, which: str) -> list[tuple[str, str, str, str]]:
    """(pid, name, state, parent's pid) of each; one that ends meanwhile is no error."""
    listing = guest.ask(f"cut -d' ' -f1-4 /proc/[0-9]*/stat 2>/dev/null | {which} || true")
    return re.findall(r"^(\d+) \((.*)\) (\S) (\d+)$", listing, re.MULTILINE)


def fill(guest: Linux, mib: int) -> None:
    """Let the guest write to `mib` MiB of its RAM, which are free again afterwards."""
    guest.ask(f"dd if=/dev/zero of=/files/fill bs=1M count={mib} 2>/dev/null && rm /files/fill")


def write_file(guest: Linux, name: str, mib: int) -> str:
    """Let the guest write a file of a little over `mib` MiB in which no page is like another; its digest."""
    guest.ask(f"for i in $(seq {mib}); do echo $i; cat /lib/pattern; done >{name}")
    contents = b"".join(b"%d\n" % number + PATTERN for number in range(1, mib + 1))
    return hashlib.md5(contents, usedforsecurity=False).hexdigest()


def digest(guest: Linux, name: str) -> str:
    """That of the file as the guest reads it now."""
    return guest.ask(f"md5sum <{name}").split()[0]


# -- what the host says ----------------------------------------------------------------------------------------------


def backed_bytes(guest: Linux) -> int:
    """The blocks that stand behind the guest's RAM, counted by another process that has only the file's name."""
    fd = guest.machine.memory.fd
    assert fd is not None
    count = "import os, sys; print(os.stat(sys.argv[1]).st_blocks * 512)"
    words = [sys.executable, "-S", "-E", "-c", count, f"/proc/{os.getpid()}/fd/{fd}"]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def host_tracks_writes() -> bool:
    """Whether a hinted page can be proved unwritten: the host's kernel is Linux 6.7 or newer."""
    try:
        os.close(hostcalls.open_write_watch())
    except OSError:
        return False
    return True


def reach(guest: Linux, size: str | int, within: str = "20s") -> None:
    """Ask for a balloon of `size`, and let the guest follow."""
    guest.machine.balloon.set_size(size)
    guest.run_until(lambda machine: machine.balloon.actual_pages == machine.balloon.target_pages, within)


def ask_for_stats(guest: Linux) -> dict[str, int]:
    """Fresh statistics, which come with the next report."""
    device = guest.machine.board.need_balloon()[1]
    reports = device.stats_reports
    guest.machine.balloon.request_stats()
    guest.run_until(lambda machine: device.stats_reports > reports)
    assert device.stats_reports == reports + 1
    assert guest.machine.stats.reason == "ok"
    return guest.machine.stats.values


def event_texts(guest: Linux, kind: str, since: int = 0) -> list[str]:
    """What the balloon told of one kind, from the event of that number on."""
    return [event.text for _, event in guest.events[since:] if (event.source, event.kind) == ("balloon0", kind)]


def sizes(guest: Linux, since: int = 0) -> list[int]:
    """The pages that the driver said are in the balloon, each time it said so."""
    return [int(text.split()[3]) for text in event_texts(guest, "actual", since)]


def balloon_pages(guest: Linux) -> int:
    """The pages that went into the balloon and did not come out, by the device's own account."""
    return guest.machine.board.need_balloon()[1].balloon_pages
