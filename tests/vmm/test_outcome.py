"""What a console tells of a Linux that panicked, and what only looks like it."""

from __future__ import annotations

import re

import pytest

from vmm.outcome import panic_before_reset, panic_that_stays

PANIC = b"[    1.204891] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"
TRACE = b"[    1.204950] CPU: 0 PID: 1 Comm: init Not tainted\r\n[    1.204990] Kernel Offset: disabled\r\n"
END = b"[    1.205000] ---[ end Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100 ]---\r\n"
REASON = "Attempted to kill init! exitcode=0x00000100"
COUNTDOWN = b"[    1.205100] Rebooting in 30 seconds..\r\n"
JOKE = b"Kernel panic - not syncing: a joke\r\n"


def without_times(console: bytes) -> bytes:
    """The console of a kernel that was started with printk.time=0."""
    return re.sub(rb"\[ *\d+\.\d+\] ", b"", console)


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        (b"", ""),
        (b"hello\r\n", ""),
        (PANIC, REASON),
        (PANIC + TRACE, REASON),
        (b"/ # " + PANIC + TRACE + b"[    1.3] Rebooting in 2 seconds..\r\n", REASON),
        (b"Kernel panic - not syncing: VFS: no root\n", "VFS: no root"),  # printk.time=0
        (b"Kernel panic - not syncing: cut of", "cut of"),
        (b"Kernel panic - not syncing: \r\nmore", "no reason is given"),
        (JOKE + b"[    2.000000] reboot: Restarting system\r\n[    2.000010] reboot: machine restart\r\n", ""),
        (JOKE + b"[    2.000000] sysrq: Resetting\r\n", ""),
        (JOKE + PANIC + TRACE, REASON),
        (b"[    0.1] reboot: Restarting system\r\n" + PANIC, REASON),
        (b"Kernel panic - not syncing: \xff\r\n", "�"),
    ],
)
def test_a_reset_that_nobody_announced_comes_from_a_panic(console: bytes, reason: str) -> None:
    assert panic_before_reset(console) == reason


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        (b"", ""),
        (PANIC, REASON),
        (PANIC + TRACE, REASON),
        (PANIC + TRACE + b"[    1.2", REASON),
        (PANIC + TRACE + b"[", REASON),
        (PANIC + TRACE + COUNTDOWN, REASON),
        (PANIC + TRACE + COUNTDOWN + b"[    9.000000] random: crng init done\r\n", REASON),
        (PANIC + TRACE + COUNTDOWN + b"/ # ", ""),
        (PANIC + TRACE + b"on it goes\r\n" + TRACE, ""),
        (b"/ # " + PANIC + TRACE, REASON),
        (PANIC.replace(b"] ", b"][    T1] ") + TRACE.replace(b"] ", b"][    T1] "), REASON),  # printk.caller=1
        (without_times(PANIC + TRACE), ""),
        (without_times(PANIC + TRACE + COUNTDOWN), REASON),
        (without_times(PANIC + TRACE + COUNTDOWN + b"on it goes\r\n"), ""),
        (COUNTDOWN, ""),
        (JOKE + TRACE, ""),
        (PANIC + TRACE + END, REASON),
        (PANIC + TRACE + END.rstrip(), REASON),
        (without_times(PANIC + TRACE + END), REASON),
        (PANIC + TRACE + END + b"[    9.000000] random: crng init done\r\n", REASON),
        (END + b"/ # ", ""),
        (END + b"on it goes\r\n", ""),
        (JOKE, ""),
    ],
)
def test_a_kernel_that_is_down_says_nothing_more(console: bytes, reason: str) -> None:
    assert panic_that_stays(console) == reason
