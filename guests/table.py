"""The bundled guests: what each is for, how it is shown, and what it must print.

Owns the rows only.  Tests boot every row and hold the guest to `prints`; the command line lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class GuestRow:
    """One bundled guest.

    `memory` is the RAM it gets if nobody says otherwise, `minimum_memory` the least it runs in.  `demo_target` is the
    schedule of a demonstration (RAM left to the guest @ guest time), `demo_poll` the seconds between two requests for
    statistics (0: none) and `demo_for` the guest time after which the host ends it; empty where the guest ends by
    itself.  `parameters` documents the words of its command line.  `prints` are regular expressions that lines of its
    console match, in this order, when it runs its demonstration.
    """

    name: str
    summary: str
    memory: str
    minimum_memory: str
    demo_target: str
    demo_poll: float
    demo_for: str
    parameters: tuple[tuple[str, str], ...]
    prints: tuple[str, ...]

    def image(self) -> bytes:
        """The ELF64 file that is loaded."""
        return self._file("elf")

    def symbols(self) -> bytes:
        """The same program with symbols and debug information."""
        return self._file("debug")

    @property
    def image_path(self) -> str:
        """Where the image lies, below the package `guests`."""
        return f"{self.name}/{self.name}.elf"

    @property
    def symbols_path(self) -> str:
        """Where the file for a debugger lies, below the package `guests`."""
        return f"{self.name}/{self.name}.debug"

    def _file(self, suffix: str) -> bytes:
        return files("guests").joinpath(self.name, f"{self.name}.{suffix}").read_bytes()


HELLO = GuestRow(
    name="hello",
    summary="greets, tells the memory map and the parameter it was given, and ends",
    memory="64M",
    minimum_memory="1M",
    demo_target="",
    demo_poll=0.0,
    demo_for="",
    parameters=(),
    prints=(
        r"^hello: hello from a guest in long mode$",
        r"^hello: \d+ KiB of RAM, \d+ PCI functions$",
        r"^hello: 000010000h - [0-9a-f]{9}h this guest$",
        r"^hello: [0-9a-f]{9}h - [0-9a-f]{9}h page tables$",
        r'^hello: my parameter is ".*"$',
    ),
)

_VIRTIO = r"^virtio: device 00:[0-9a-f]{2}\.\d offers features [0-9a-f]+h, accepted [0-9a-f]+h$"

_INTX = ("intx=1", "uses the device's interrupt line instead of MSI-X")

STATS = GuestRow(
    name="stats",
    summary="works a little, follows the balloon's target and reports its memory statistics",
    memory="64M",
    minimum_memory="1M",
    demo_target="32M@2s,16M@4s,64M@6s",
    demo_poll=0.5,
    demo_for="8s",
    parameters=(
        ("ticks=N", "ends after N tenths of a second with exit code 0; otherwise it never ends"),
        _INTX,
        ("v2=1", "lays statistics out as they were first proposed (device: stats-format=v2)"),
    ),
    prints=(
        r"^stats: \d+ pages, all of them written to; \d+ for the workload, \d+ for a RAM disk to swap to, \d+ free$",
        _VIRTIO,
        r"^balloon: inflateq \d+, deflateq \d+, statsq \d+ entries; MSI-X$",
        r"^stats: target 8192 pages reached, 8192 in the balloon; \d+ of my \d+ pages are free$",
        r"^stats: target 12288 pages reached, 12288 in the balloon; \d+ of my \d+ pages are free$",
        r"^stats: target 0 pages reached, 0 in the balloon; \d+ of my \d+ pages are free$",
    ),
)

BALLOON = GuestRow(
    name="balloon",
    summary="follows the balloon's target and checks that no page's contents are lost or mixed up",
    memory="64M",
    minimum_memory="1M",
    demo_target="32M@2s,16M@4s,64M@6s",
    demo_poll=0.0,
    demo_for="8s",
    parameters=(
        ("targets=N", "ends when the N-th target is reached with exit code 0; otherwise it never ends"),
        ("check=0", "gives pages away without looking at them first, so that inflating can be timed"),
        _INTX,
        ("report=1", "reports its free pages at the start and after each target (device: free-page-reporting=on)"),
        (
            "hint=2",
            "writes to every other page that it hints (--hint TIME) before the host knows; hint=0 hints nothing",
        ),
        ("poison=N", "fills free pages with the number N, and expects it in what it reported (PAGE_POISON)"),
    ),
    prints=(
        _VIRTIO,
        r"^balloon: inflateq \d+, deflateq \d+ entries; MSI-X$",
        r"^balloon: \d+ of \d+ pages are free and hold a pattern$",
        r"^balloon: target 8192 pages reached in 32 requests, \d+ pages kept their contents, "
        r"returned: 0 zeroed, 0 unchanged$",
        r"^balloon: target 12288 pages reached in 48 requests, \d+ pages kept their contents, "
        r"returned: 0 zeroed, 0 unchanged$",
        r"^balloon: target 0 pages reached in 96 requests, \d+ pages kept their contents, "
        r"returned: 12288 zeroed, 0 unchanged$",
    ),
)

TORTURE = GuestRow(
    name="torture",
    summary="provokes every kind of exception and interrupt, and compares what the processor does with its manual",
    memory="64M",
    minimum_memory="1M",
    demo_target="",
    demo_poll=0.0,
    demo_for="",
    parameters=(),
    prints=(r"^torture: \d+ checks, \d+ exceptions, \d+ timer interrupts, 0 wrong$",),
)

HOSTILE = GuestRow(
    name="hostile",
    summary="makes a request that no driver may make, and judges what the balloon does about it",
    memory="64M",
    minimum_memory="1M",
    demo_target="",
    demo_poll=0.0,
    demo_for="",
    parameters=(("NAME", "the request to make; without a name it lists them all and ends"), _INTX),
    prints=(
        r"^hostile: give me the name of a request as my parameter:$",
        r"^hostile: avail-jump +the available index runs ahead by more than the queue has \(2\.7\.13\.3\)$",
        r"^hostile: huge +a buffer of 4 GiB \(2\.7\.5\)$",
        r"^hostile: pfn-outside +page numbers of no RAM among good ones \(5\.5\.6\)$",
    ),
)

GUESTS: dict[str, GuestRow] = {row.name: row for row in (HELLO, STATS, BALLOON, TORTURE, HOSTILE)}
