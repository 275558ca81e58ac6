"""Who writes a word of guest RAM: a hardware watchpoint in every thread of a VMM.

The processor's debug registers, reached through ptrace, stop a thread behind the instruction that wrote.  So the VM
runs at its usual speed, and stands still for a moment at each such write.  What the kernel writes for a system call
they do not see.  The registers belong to threads: one that is started meanwhile gets them before it runs.

They must be taken away again, and every trap that they have caused be swallowed: a process with a trap and no tracer
ends.  So nothing is left to luck here: `Watchpoint.close` stops every thread, clears its registers and waits for a trap
that is on its way.
"""

from __future__ import annotations

import platform
import re
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from devices.errors import ConfigError, OutsideRam
from vmm.device_table import TableView
from vmm.inspect import ptrace_import
from vmm.inspect.code_places import CodePlaces, Place, stack_words
from vmm.inspect.guest_ram import GuestRam
from vmm.inspect.look import require_vmm, tables_of
from vmm.inspect.rings import QueueLook, describe_queue
from vmm.inspect.tracee import RUNNING, Tracee
from vmm.inspect.undisturbed import Undisturbed

_POKEUSER = 6
_DEBUG_REGISTERS = 848  # offsetof(struct user, u_debugreg) on x86-64
_STATUS, _CONTROL = 6, 7
_SLOTS = 4
_LENGTH_BITS: Final = {1: 0, 2: 1, 4: 3, 8: 2}
_ON_WRITES = 1
_PAUSE_S = 0.0002
_PATIENCE_S = 5.0
_INDICES: Final = {"used.idx": "used ring", "avail.idx": "available ring"}
_ADDRESS = re.compile(r"0x(?P<c>[0-9a-f]+)|(?P<hex>[0-9a-f]+)h|(?P<decimal>[0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Spot:
    """`size` bytes at `gpa`, which the VMM has at each of `addresses`."""

    what: str
    gpa: int
    size: int
    addresses: tuple[int, ...]
    big_endian: bool = False


@dataclass(frozen=True, slots=True)
class Write:
    """One write: `seconds` since the watch began, `old` and `new` what was read there before and after it."""

    seconds: float
    what: str
    gpa: int
    size: int
    old: int
    new: int
    thread: int
    name: str
    pc: int
    place: Place

    @property
    def writer(self) -> str:
        return self.place.sentence()

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        own = {name: getattr(self, name) for name in ("seconds", "what", "gpa", "size", "old", "new", "thread", "name")}
        place = {"file": self.place.file, "symbol": self.place.symbol, "offset": self.place.offset}
        return own | {"pc": self.pc, "side": self.place.side, **place, "caller": self.place.caller}


def watch(
    pid: int, what: str, *, queue: str = "", size: int = 0, count: int = 0, timeout_s: float = 0.0
) -> Generator[Write, None, None]:
    """Each write to `what` as it happens: "used.idx" or "avail.idx" of `queue`, or of every queue that has one, or an
    address, "0x105204c".  Until there were `count`, or `timeout_s` have passed, or the process ends.

    ConfigError, in one sentence, where there is nothing to watch or nobody may."""
    if platform.machine() != "x86_64":
        raise ConfigError(f"a watchpoint takes the debug registers of an x86-64 host, not of {platform.machine()!r}")
    mappings = ptrace_import.mappings_of(pid)
    inodes = require_vmm(pid, mappings)
    spots_of = [(inode, _spots(pid, inode, list(tables_of(pid, mappings)), what, queue, size)) for inode in inodes]
    chosen = [(inode, spots) for inode, spots in spots_of if spots]
    if len(chosen) != 1:
        raise ConfigError(f"process {pid} has {len(chosen)} machines with that: it must be one")
    inode, spots = chosen[0]
    with (
        Undisturbed() as undisturbed,
        GuestRam.attach(pid, inode=inode) as ram,
        Tracee(pid, "watch") as tracee,
        Watchpoint(tracee, ram, spots) as watchpoint,
    ):
        for write in watchpoint.writes(count, timeout_s, lambda: undisturbed.waiting):
            with undisturbed.open_to_signals():
                yield write


# -- what to watch ---------------------------------------------------------------------------------------------------


def _spots(pid: int, inode: int, tables: list[TableView], what: str, queue: str, size: int) -> list[Spot]:
    with GuestRam.attach(pid, inode=inode) as ram:
        if what not in _INDICES:
            return [_spot_at(ram, _parse_address(what), size)]
        rings = [ring for table in tables if table.ram_inode == inode for ring in _rings(table)]
        named = [(name, ring) for name, ring in rings if not queue or queue in (ring.name, name, str(ring.index))]
        if not named:
            names = ", ".join(name for name, _ in rings) or "none"
            which = f"no queue {queue!r} that is set up, only: {names}" if queue else "no queue that is set up yet"
            raise ConfigError(f"there is {which}")
        split = [(name, ring) for name, ring in named if not ring.packed]
        if not split:
            raise ConfigError(f"{named[0][0]} is a packed ring, which has no {what}: give an address in it")
        if len(split) > _SLOTS:
            raise ConfigError(f"at most {_SLOTS} places can be watched at once: choose a queue with --queue")
        found = []
        for name, ring in split:
            gpa = ring.parts[_INDICES[what]][0] + 2
            found.append(Spot(f"{name} {what}", gpa, 2, _addresses(ram, gpa, 2), ring.big_endian))
        return found


def _rings(table: TableView) -> list[tuple[str, QueueLook]]:
    """The queues that are set up, each with its full name."""
    found = []
    for device, rows in zip(table.devices, table.queues, strict=True):
        looks = (describe_queue(row) for row in rows)
        found += [(f"{device['name'].decode()}.{look.name}", look) for look in looks if look.enabled]
    return found


def _parse_address(text: str) -> int:
    match = _ADDRESS.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"what to watch must be used.idx, avail.idx or a guest-physical address such as 0x105204c, not {text!r}"
        )
    digits = match["c"] or match["hex"]
    return int(digits, 16) if digits else int(match["decimal"])


def _spot_at(ram: GuestRam, gpa: int, size: int) -> Spot:
    size = size or min(gpa & -gpa or 4, 4)
    if size not in _LENGTH_BITS:
        raise ConfigError(f"the size must be 1, 2, 4 or 8 bytes, not {size}")
    if gpa % size:
        raise ConfigError(f"the address {gpa:#x} must be a multiple of the size, {size} bytes")
    return Spot(f"{gpa:#x}", gpa, size, _addresses(ram, gpa, size))


def _addresses(ram: GuestRam, gpa: int, size: int) -> tuple[int, ...]:
    """Where the VMM has it: once for each mapping of its RAM."""
    found = [each.address + gpa - each.gpa for each in ram.regions if each.gpa <= gpa <= each.end - size]
    if not found:
        raise ConfigError(f"the {size} bytes at {gpa:#x} are not guest RAM")
    if len(found) > _SLOTS:
        raise ConfigError(f"the VMM has {gpa:#x} mapped {len(found)} times, more than there are debug registers")
    return tuple(found)


# -- watching --------------------------------------------------------------------------------------------------------


class Watchpoint:
    """`spots` of `ram`, watched in all threads of `tracee`, which stand; a context manager."""

    def __init__(self, tracee: Tracee, ram: GuestRam, spots: list[Spot]) -> None:
        self._tracee = tracee
        self._ram = ram
        self._slots = [(spot, address) for spot in spots for address in spot.addresses]
        if len(self._slots) > _SLOTS:
            raise ConfigError(f"at most {_SLOTS} places can be watched at once, not {len(self._slots)}")
        self._error: type[Exception] = ptrace_import.load("error").PtraceError
        self._places = CodePlaces(tracee.pid)
        self._last = {spot: self._read(spot) for spot in spots}
        self._armed: set[int] = set()
        try:
            tracee.follow_new_threads()
            for tid in list(tracee.stops):
                self._arm(tid)
        except self._error as error:
            self.close()
            raise ConfigError(
                "the host does not give the processor's debug registers, which a watchpoint takes, as in some "
                f"containers and virtual machines ({error})"
            ) from error
        except BaseException:
            self.close()
            raise

    def writes(self, count: int, timeout_s: float, leave: Callable[[], bool] = lambda: False) -> Iterator[Write]:
        """Let the process run, and give each write; the writer stands still while it is looked at.  Until there were
        `count`, if not 0, `timeout_s` have passed, if not 0, the process ends, or `leave()` is true."""
        start, seen = time.monotonic(), 0
        for tid in list(self._tracee.stops):
            self._tracee.go_on(tid)
        while self._tracee.stops:
            busy = False
            for tid in self._tracee.stopped():
                busy = True
                found = self._look_at(tid, time.monotonic() - start)
                for write in found:
                    seen += 1
                    yield write
                    if seen == count:
                        return
            if timeout_s and time.monotonic() - start >= timeout_s:
                return
            if leave():
                return
            if not busy:
                time.sleep(_PAUSE_S)

    def _look_at(self, tid: int, seconds: float) -> list[Write]:
        """What one thread that has stopped did, and let it go on."""
        tracee, found = self._tracee, []
        signum = tracee.signal_of(tid)
        try:
            if tid not in self._armed:
                self._arm(tid)  # it was just started
            if signum == signal.SIGTRAP and (hits := self._take_hits(tid)):
                signum = 0
                found = [self._write(tid, spot, seconds) for spot in hits]
        except self._error:  # killed while it stood
            return found
        finally:
            if tid in tracee.stops:
                tracee.go_on(tid, signum)
        return found

    def _write(self, tid: int, spot: Spot, seconds: float) -> Write:
        registers = self._tracee.registers(tid)
        pid = self._tracee.pid
        place = self._places.find(registers.rip, stack_words(pid, registers.rsp))
        old, new = self._last[spot], self._read(spot)
        self._last[spot] = new
        name = ""
        with suppress(OSError):
            name = ptrace_import.status_of(pid, tid)["Name"]
        return Write(seconds, spot.what, spot.gpa, spot.size, old, new, tid, name, registers.rip, place)

    def _read(self, spot: Spot) -> int:
        try:
            return int.from_bytes(self._ram.peek(spot.gpa, spot.size), "big" if spot.big_endian else "little")
        except OutsideRam:  # the VMM has ended
            return 0

    # -- debug registers -----------------------------------------------------------------------------------------------

    def _poke(self, tid: int, register: int, value: int) -> None:
        self._tracee.ptrace(_POKEUSER, tid, _DEBUG_REGISTERS + 8 * register, value)

    def _arm(self, tid: int) -> None:
        control = 0
        for slot, (spot, address) in enumerate(self._slots):
            self._poke(tid, slot, address)
            control |= 1 << 2 * slot | (_LENGTH_BITS[spot.size] << 2 | _ON_WRITES) << 16 + 4 * slot
        self._armed.add(tid)
        self._poke(tid, _CONTROL, control)

    def _hits(self, tid: int) -> int:
        return ptrace_import.peek_user(tid, _DEBUG_REGISTERS + 8 * _STATUS) & (1 << _SLOTS) - 1

    def _take_hits(self, tid: int) -> list[Spot]:
        """Where the thread's trap came from; it is done with then."""
        hits = self._hits(tid)
        if hits:
            self._poke(tid, _STATUS, 0)
        spots = [spot for slot, (spot, _) in enumerate(self._slots) if hits >> slot & 1]
        return list(dict.fromkeys(spots))  # one, where it is mapped twice

    def close(self) -> None:
        """Take the registers away from every thread, which stands still afterwards; a second time is no error."""
        for tid in self._tracee.each():
            if self._tracee.halt(tid):
                with suppress(self._error):  # killed while it stood
                    self._disarm(tid)

    def _disarm(self, tid: int) -> None:
        if tid not in self._armed:
            return
        self._poke(tid, _CONTROL, 0)
        self._armed.discard(tid)
        deadline = time.monotonic() + _PATIENCE_S
        while self._hits(tid):
            if self._tracee.signal_of(tid) == signal.SIGTRAP:
                self._poke(tid, _STATUS, 0)
                self._tracee.swallow_signal(tid)
                return
            # It stopped for another reason before its trap was told: that comes next.
            self._tracee.go_on(tid, self._tracee.signal_of(tid))
            while self._tracee.stops.get(tid) == RUNNING and not self._tracee.has_stopped(tid):
                if time.monotonic() > deadline:
                    return
                time.sleep(_PAUSE_S)
            if tid not in self._tracee.stops:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()
