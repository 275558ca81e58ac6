"""QEMU's monitor for people: a line in, lines out.  `Monitor.execute` is all that others need of it.

`commands` has the tables of what can be said, `arguments` reads what a command takes, and `expressions` a number in it.
What the commands do has a module for each kind: `machine`, `memory` with `disassembly`, `registers`, `pci`, `qtree`,
`virtio`, `mtree`.  `editor` makes lines of keys, `sessions` are the ways in which somebody talks to a monitor.
Commands, answers and complaints are those of QEMU 7.2 where it has them.
"""

from __future__ import annotations

from vmm.control.monitor.commands import Monitor

__all__ = ["Monitor"]
