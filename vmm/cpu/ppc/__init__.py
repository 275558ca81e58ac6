"""A 32-bit big-endian processor: the PowerPC 604e of Unicorn, behind the same contract as the x86 one.

Of Unicorn's big-endian processors the other choice was MIPS.  Unicorn 2.1.4 forgets where a MIPS exception happened
(but for system calls), chooses the TLB entry to replace by a number that all engines of a process share, and shows the
host's clock in a register.  A PowerPC's exceptions are exact, its translations come from tables in RAM, and nothing of
the host is seen.
"""
