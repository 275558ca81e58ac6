"""A machine in a file: `write_snapshot` puts it there, `read_snapshot` finds it again; docs/snapshot.md has the format.

    write_snapshot(machine, "guest.snap")
    with read_snapshot("guest.snap") as snapshot, snapshot.boot() as machine:
        machine.run("1s")

Whoever lets a machine run calls `write_snapshot` between two steps of it, as `Machine.save` is called.
"""

from __future__ import annotations

from vmm.snapshots.ram import Progress
from vmm.snapshots.reading import Snapshot, read_snapshot
from vmm.snapshots.writing import check_place, write_snapshot

__all__ = ["Progress", "Snapshot", "check_place", "read_snapshot", "write_snapshot"]
