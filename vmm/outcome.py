"""How a run ended, in words that stay the same.

A Linux that panics tells the machine only where its pvpanic driver is loaded.  Without it a panic looks like a reboot
(`panic=-1`) or like a guest that idles until its time is over, which must not pass for success.  What is left is what
the kernel says on the console, and that can be relied on: a panic prints at every log level, a reboot that was asked
for prints a line of its own after it, and after a kernel that stays down no program prints any more.
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
_STAYS = b"---[ end " + _PANIC
_ANNOUNCED = (b"reboot: Restarting system", b"sysrq: Resetting")
_KERNEL_LINE = re.compile(rb"\[ *\d+\.\d+\]|\s*$")


def panic_before_reset(console: bytes) -> str:
    """What Linux said of the panic that made it reset the machine; "" where `console` shows no such thing."""
    text = console[console.rfind(_PANIC) :] if _PANIC in console else b""
    return "" if not text or any(line in text for line in _ANNOUNCED) else _reason(text)


def panic_that_stays(console: bytes) -> str:
    """What Linux said of the panic after which it does nothing any more; "" where `console` goes on otherwise.

    Interrupts still come then, and what a driver has to say to one begins with the kernel's time."""
    _, found, text = console.rpartition(_STAYS)
    if not found or not all(_KERNEL_LINE.match(line) for line in text.splitlines()[1:]):
        return ""
    return _reason(_PANIC + text).removesuffix(" ]---")


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
