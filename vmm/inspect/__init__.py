"""Looking at a running or hanging VMM from another process, without its help.

`GuestRam` maps its RAM, without stopping it.  `look.inspect` freezes it for a moment and tells everything about its
rings and its balloon; `watchpoint.watch` tells who writes a word of its RAM; `DiscardTrace` is the outside witness of
what it gives back to the host (that one stops it at every system call).  Nothing here imports the machine, and
python-ptrace is imported only when it is used.
"""

from vmm.inspect.discards import DiscardCall, DiscardTrace
from vmm.inspect.guest_ram import GuestRam, RamRegion

__all__ = ["DiscardCall", "DiscardTrace", "GuestRam", "RamRegion"]
