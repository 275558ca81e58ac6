"""A 32-bit big-endian processor: the PowerPC 604e of Unicorn, behind the same contract as the x86 one."""
