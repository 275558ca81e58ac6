"""Debian's gdb and Debian's kernel, without its debug package: addresses come from the kernel's own /proc/kallsyms."""

from __future__ import annotations

import re
from pathlib import Path

from tests.boot import debian
from tests.boot.guest import MOUNT
from tests.vmm.control.gdb.real import CTRL_C, in_order, needs_gdb, vmm_for_gdb

pytestmark = [debian.needs_debian, needs_gdb]

KERNEL_ENTRY = 0x1000000
NAMES = ("linux_banner", "do_idle", "do_sys_openat2", "jiffies", "init_task")
INIT = f"""{MOUNT}
/bin/busybox grep -E ' ({"|".join(NAMES)})$' /proc/kallsyms
echo asleep
/bin/busybox sleep 4
/bin/busybox cat /proc/version
echo done
/bin/busybox poweroff -f
"""


def check(said: str, *pieces: str) -> None:
    assert in_order(said, pieces), said


def test_the_kernel_from_its_entry_to_power_off(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(debian.initramfs(INIT))
    words = ("--kernel", str(debian.kernel()), "--initrd", str(initrd), "--append", "console=ttyS0 quiet panic=-1")
    with vmm_for_gdb(tmp_path, *words, "-m", "256M", "-S") as vmm:
        # its first instruction, from the reset vector: a hardware breakpoint, and the page is not there yet
        said = vmm.gdb(
            *(f"hbreak *{KERNEL_ENTRY}", "continue", "print $cr0", "print/x *(unsigned *)($rsi + 0x202)", "x/i $pc"),
            *("stepi", "delete", "detach"),
        )
        check(said, "Breakpoint 1, 0x0000000001000000", "PG ]", "$2 = 0x5372", "lea ", "detached]")  # "HdrS"
        console = vmm.wait_for("asleep")
        places = {name: int(address, 16) for address, name in re.findall(r"(f{8}\w{8}) \w (\w+)\r?$", console, re.M)}
        assert set(NAMES) <= set(places), console
        # asleep in HLT, where it is let go on and interrupted; its own addresses lead through its page tables
        said = vmm.gdb(
            CTRL_C,
            *("continue", "print/x $cs", "print $cr4", "print $pc > 0xffffffff81000000"),
            *(
                f"x/s {places['linux_banner']}",
                f"x/2i {places['do_idle']}",
                f"find {places['init_task']}, +0x1000, 's', 'w', 'a', 'p', 'p', 'e', 'r'",
            ),
            *(f"watch *(unsigned long *){places['jiffies']}", "continue", "delete"),
            *(f"break *{places['do_sys_openat2']}", "continue", "print $cs & 3", "x/s $rsi"),
            *("stepi", "stepi", "delete", "continue"),
        )
        check(
            said,
            "Program received signal SIGINT",
            "$1 = 0x10",
            "PAE",
            "$3 = 1",
            "Linux version 6.",
            "1 pattern found",
            "Hardware watchpoint 1",
            "Old value",
            "New value",
            f"Breakpoint 2, {places['do_sys_openat2']:#x}",
            "$4 = 0",
            '"/proc/version"',  # the program's own memory, at the same time
            "exited normally",
        )
        assert vmm.status() == 0
        assert "done" in vmm.wait_for("done")
