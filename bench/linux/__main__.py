"""`python -m bench.linux`: the same kernel and initramfs here and in QEMU, taking turns; prints one table.

QEMU runs with one thread of its own translator (TCG), as this project runs on one thread of Unicorn's, which is an
older fork of it: both translate the guest's code, neither uses the processor's virtualization.  All of the guest's RAM
was written to before it is given to the host.  Ratios are medians of the ratios of each pass.

What a profile (perf) of this project's side showed.  Of the boot about a third is translated code, a quarter the
translator, which looks through its whole TLB for each new block, a tenth the search for the block after an indirect
jump, a sixth Python: 18,500 characters of console, two port accesses each, and 8,192 looks for PCI buses that the MCFG
table announces.  7 % are stores into executable pages, which all have Unicorn look for code they might change: until
the end of its boot the kernel's own data is mapped so.  Inflating is a third Python (the device, and its interrupts), a
quarter the host's discards; clearing each page is little since machine code does it.  Deflating is two thirds Python:
about 0.2 ms a request of 256 pages in the device, and 0.1 ms for the delivery of its interrupt.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from bench.linux import here, qemu
from bench.linux.images import make_images
from bench.linux.scenario import BALLOON_MIB, Timings
from bench.table import machine

PASSES = 5
GIB_MIB = 1024


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measured(runs: dict[str, Callable[[], Timings]]) -> dict[str, list[Timings]]:
    """Every run in turn, each pass beginning with another."""
    names = list(runs)
    results: dict[str, list[Timings]] = {name: [] for name in runs}
    for number in range(PASSES):
        for name in names if number % 2 == 0 else names[::-1]:
            results[name].append(runs[name]())
            say(f"pass {number + 1} of {PASSES}, {name}: {describe(results[name][-1])}")
    return results


def describe(timings: Timings) -> str:
    return ", ".join(
        f"{field.name.replace('_', ' ')} {getattr(timings, field.name):.2f} s" for field in fields(timings)
    )


def table(results: dict[str, list[Timings]]) -> str:
    """Medians, and how many times QEMU's time (or speed) ours is."""
    lines = ["| measurement | here | QEMU | ratio | must be |", "|---|---:|---:|---:|---|"]
    for name, title, must in (
        ("kernel_to_init", "kernel's first line to `/init`, s", "at most 1.8 times QEMU's time"),
        ("start_to_bound", "start to driver bound, s", ""),
    ):
        ours, theirs = ([getattr(timing, name) for timing in results[peer]] for peer in ("here", "qemu"))
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        lines.append(line(title, statistics.median(ours), statistics.median(theirs), ratio, must))
    for name, must in (("inflate", "at least 1.0 times QEMU's speed"), ("deflate", "")):
        ours, theirs = ([getattr(timing, name) for timing in results[peer]] for peer in ("here", "qemu"))
        here_speed, qemu_speed = (BALLOON_MIB / GIB_MIB / statistics.median(times) for times in (ours, theirs))
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        lines.append(line(f"{name} {BALLOON_MIB} MiB, GiB/s", here_speed, qemu_speed, ratio, must))
    return "\n".join(lines)


def line(title: str, ours: float, theirs: float, ratio: float, must: str) -> str:
    return f"| {title} | {ours:.2f} | {theirs:.2f} | {ratio:.2f} | {must} |"


def main() -> int:
    if shutil.which(qemu.PROGRAM) is None:
        say(f"This benchmark needs {qemu.PROGRAM}: install Debian's package qemu-system-x86.")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        kernel, initrd = make_images(Path(folder))
        results = measured({"here": lambda: here.run(kernel, initrd), "qemu": lambda: qemu.run(kernel, initrd)})
    print(machine())
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
