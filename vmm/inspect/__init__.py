"""Looking at a running VMM from another process, without its help and without stopping it.

`GuestRam` maps its RAM; `DiscardTrace` is the outside witness of what it gives back to the host (that one does stop
it, at every system call).  Nothing here imports the machine, and python-ptrace is imported only when it is used.
"""

from vmm.inspect.discards import DiscardCall, DiscardTrace
from vmm.inspect.guest_ram import GuestRam, RamRegion

__all__ = ["DiscardCall", "DiscardTrace", "GuestRam", "RamRegion"]
