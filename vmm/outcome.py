"""How a run ended, in words that stay the same.

A Linux that panics tells the machine only where its pvpanic driver is loaded.  Without it a panic looks like a reboot
(`panic=-1`) or like a guest that idles until its time is over (`panic=0`, `panic=30`), which must not pass for success.
What is left is what the kernel says on the console: a panic prints at every log level but 0, a reboot that was asked
for prints a line of its own after it, and after a kernel that stays down no program prints any more.  Where the level
is 0 (`loglevel=0`) or there is no console, a panic that resets the machine cannot be told from any other reset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vmm.cpu import Exit


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: one of the documented words, the exit status that goes with it, and a sentence."""

    kind: str
    exit_code: int
    detail: str


_PANIC = b"Kernel panic - not syncing: "
_ANNOUNCED = (b"reboot: Restarting system", b"sysrq: Resetting")
_TIME = rb"\[ *\d+\.\d+\]"  # the kernel begins its lines with it, unless printk.time=0
_KERNEL_LINE = re.compile(_TIME + rb"|\s*$|\[[ \d.]*$")  # the last may have come in part
_DOWN = re.compile(_TIME + rb"(\[[^]]*\])? " + _PANIC + rb"|---\[ end " + _PANIC)
_COUNTS_DOWN = re.compile(rb"(" + _TIME + rb"(\[[^]]*\])? )?Rebooting in \d+ seconds\.\.$")


def panic_before_reset(console: bytes) -> str:
    """What Linux said of the panic that made it reset the machine; "" where `console` shows no such thing."""
    text = console[console.rfind(_PANIC) :] if _PANIC in console else b""
    return "" if not text or any(line in text for line in _ANNOUNCED) else _reason(text)


def panic_that_stays(console: bytes) -> str:
    """What Linux said of the panic after which it does nothing any more, or counts the seconds until it resets the
    machine; "" where `console` goes on otherwise.

    A panic is told at length, and at its end Linux says that it stays down or when it reboots.  Interrupts still come,
    and what a driver has to say to one begins with the kernel's time, as do the panic's lines: what a program writes
    does not.  Without those times only the end counts."""
    reason, down = "", False
    for line in console.splitlines():
        _, found, text = line.partition(_PANIC)
        if found:
            reason, down = _reason(_PANIC + text).removesuffix(" ]---"), _DOWN.search(line) is not None
        elif reason and _COUNTS_DOWN.match(line):
            down = True
        elif not _KERNEL_LINE.match(line):
            down = False
    return reason if down else ""


def _reason(text: bytes) -> str:
    """The end of the line with which `text` begins."""
    line = text.removeprefix(_PANIC).splitlines()[:1]
    return b"".join(line).decode("utf-8", "replace").strip() or "no reason is given"


def describe_triple_fault(exit_: Exit, doubt: str = "") -> str:
    """The first exception that could not be delivered, where it was, what speaks against the guest's file if anything
    does, and the registers."""
    names = [name for name in exit_.registers if name not in ("cs", "rip")]
    values = " ".join(f"{name}={exit_.registers[name]:x}" for name in names)
    place = f"{exit_.registers['cs']:04x}:{exit_.registers['rip']:016x}"
    return f"{with_doubt(f'exception {exit_.vector} at {place} could not be delivered', doubt)}; {values}"


def with_doubt(sentence: str, doubt: str) -> str:
    """How a guest died, and what speaks against its file if anything does."""
    return f"{sentence}, and {doubt}" if doubt else sentence
