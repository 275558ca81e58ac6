"""Which number a queue of the balloon has: three answers, all of them in use (virtio 1.3 §5.5.2).

Owns the queues' names, features and smallest sizes, their order, and the diagnosis when a driver counts otherwise.

- "spec": the specification's fixed numbers.  A queue whose feature is missing leaves a gap.  Linux finds no statsq in
  the gap and counts on, so it fails with a device that numbers like this as soon as an earlier queue is missing.
- "offered": the queues whose features the device offers, densely.  QEMU, Firecracker, cloud-hypervisor and crosvm
  count like this, so it is the default.
- "negotiated": the queues whose features both sides agreed on, densely, as Linux counts.

The three are the same for a device that offers everything to a driver that takes everything.  Otherwise a driver that
counts differently shows itself: with the same features both name their queues in the same order, so if every number it
uses is a queue here, they are the same queues.  Hence it is enough to look at the numbers that are none: those that it
kicks or sets up, and those whose size it reads and does not find, since most drivers stop there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, get_args

from devices.virtio import spec
from devices.virtio.queue import Queue, QueueSpec

Numbering = Literal["spec", "offered", "negotiated"]
NUMBERINGS: Final[tuple[Numbering, ...]] = get_args(Numbering)


class Row(NamedTuple):
    """A queue of the balloon: `feature` None means that it is always there; it never has less than `fewest` entries."""

    name: str
    feature: int | None
    fewest: int


ROWS: Final = (
    Row("inflateq", None, 1),
    Row("deflateq", None, 1),
    Row("statsq", spec.VIRTIO_BALLOON_F_STATS_VQ, 1),
    Row("free_page_vq", spec.VIRTIO_BALLOON_F_FREE_PAGE_HINT, 2),  # Linux keeps one entry free for its last id
    Row("reporting_vq", spec.VIRTIO_BALLOON_F_PAGE_REPORTING, 32),  # Linux refuses a device that takes fewer ranges
)


def _exists(row: Row, features: int) -> bool:
    return row.feature is None or bool(features >> row.feature & 1)


def names(numbering: Numbering, offered: int, negotiated: int) -> list[str]:
    """The queue that each number means, "" where it means none, once `negotiated` was."""
    if numbering == "spec":
        return [row.name if _exists(row, negotiated) else "" for row in ROWS]
    counted = offered if numbering == "offered" else negotiated
    return [row.name if _exists(row, negotiated) else "" for row in ROWS if _exists(row, counted)]


def queue_specs(numbering: Numbering, offered: int, size: int) -> list[QueueSpec]:
    """The queues that a device with `offered` features has, in the order of their numbers before negotiation."""
    rows = ROWS if numbering == "spec" else [row for row in ROWS if _exists(row, offered)]
    return [QueueSpec(row.name, max(size, row.fewest), row.feature) for row in rows]


def ordered(queues: Sequence[Queue], numbering: Numbering, negotiated: int | None) -> list[Queue]:
    """`queues` in the order of their numbers, `negotiated` being None as long as it is open.

    With "negotiated" those that were not negotiated come last: their numbers mean nothing."""
    rank = {row.name: number for number, row in enumerate(ROWS)}
    if numbering == "negotiated" and negotiated is not None:
        rank.update((row.name, len(ROWS) + number) for number, row in enumerate(ROWS) if not _exists(row, negotiated))
    return sorted(queues, key=lambda queue: rank[queue.name])


def diagnosis(index: int, numbering: Numbering, offered: int, negotiated: int, *, verb: str = "uses") -> str:
    """What a driver may have meant with number `index`, which is no queue here, and what to set for it; "" if no
    numbering has it."""
    meant: dict[str, list[str]] = {}
    for other in NUMBERINGS:
        known = names(other, offered, negotiated)
        if other != numbering and index < len(known) and known[index]:
            meant.setdefault(known[index], []).append(other)
    if not meant:
        return ""
    advice = [f"queue-numbering={' or '.join(others)} if it means {name}" for name, others in meant.items()]
    missing = f"the driver {verb} queue {index}, which does not exist with queue-numbering={numbering}"
    return f"{missing}; set {', '.join(advice)}"
