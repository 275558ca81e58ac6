"""Guest RAM in huge pages that the host has no more of: the run ends in words, and not by a signal.

The host sets all of them aside when RAM is made.  One that the balloon gave back is set aside no longer; that is what
giving back means.  If others have taken all that are free when the guest touches it again, which a hostile guest may do
with any page of the balloon and a good one does after a deflation, the kernel answers with SIGBUS: at a store of the
emulated processor or of a device.

Nobody could go on from there, so the signal puts ordinary memory in the page's place, which reads as zeros as a new
huge page would, and the interrupted access goes on with it.  The machine sees that this happened and ends the run
before it takes the next step.  A fault anywhere else is none of ours, and does what it did before.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
from typing import ClassVar, Final

from devices.large_pages import mappings_of
from devices.memory import GuestMemory

_SA_SIGINFO: Final = 4
_SI_ADDR: Final = 16  # the offset in siginfo_t, on Linux with 64 bits
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000  # Linux; the mmap module does not name them in Python 3.11

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction of the C library."""

    _fields_: ClassVar = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * (1024 // (8 * ctypes.sizeof(ctypes.c_ulong)))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


class ShortageGuard:
    """Stands before the RAM of `memory` from now until `close`.  `lost_pages` counts the huge pages that the host could
    not give, and that are ordinary memory now; 0 for ever where RAM is in no huge pages."""

    def __init__(self, memory: GuestMemory) -> None:
        self.lost_pages = 0
        self.page_bytes = memory.host_page_bytes
        self._ranges = mappings_of(memory.regions) if memory.backing == "hugepages" else {}
        if self._ranges:
            _guards.append(self)
            _listen()

    def replace(self, address: int) -> bool:
        """Put ordinary memory where `address` is, if that is RAM of ours."""
        start = next((start for start, length in self._ranges.items() if 0 <= address - start < length), None)
        if start is None:
            return False
        page = start + (address - start) // self.page_bytes * self.page_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
        if _libc.mmap(page, self.page_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != page:
            return False
        self.lost_pages += 1
        return True

    def close(self) -> None:
        """Stand aside; a second time is no error.  Before the memory is closed: its addresses may be anybody's then."""
        if self in _guards:
            _guards.remove(self)
            if not _guards:
                _stop_listening()
        self._ranges = {}


_guards: list[ShortageGuard] = []
_before = _Action()  # what was done about the signal before


def _bus_error(number: int, info: int, context: int) -> None:
    """Runs wherever RAM was touched.  That is never within the allocator or Python's own structures, so Python may."""
    address = ctypes.c_void_p.from_address(info + _SI_ADDR).value or 0
    if not any(guard.replace(address) for guard in _guards):
        _stop_listening()  # the access is tried again, and fails as it would have


_handler = _Handler(_bus_error)


def _listen() -> None:
    if len(_guards) == 1:
        action = _Action(ctypes.cast(_handler, ctypes.c_void_p).value, flags=_SA_SIGINFO)
        _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(_before))


def _stop_listening() -> None:
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_before), None)
