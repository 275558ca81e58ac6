"""QEMU's monitor for people: a line in, lines out.  `Monitor.execute` is all that others need of it."""

from __future__ import annotations

from vmm.control.monitor.commands import Monitor

__all__ = ["Monitor"]
