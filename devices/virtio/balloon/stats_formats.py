"""The two layouts of a statistics buffer: the final one, and the one of the patch that began it all.

Owns what the bytes of an entry mean.  `docs/balloon.md` tells how one became the other.

- "final" (§5.5.6.3): packed {u16 tag, u64 value}, 10 bytes, both in the driver's byte order; sizes in bytes.
- "v2", the patch as it was posted in November 2009: {u16 tag, 2 bytes of padding, u32 value}, 8 bytes; the tag in the
  driver's order, since the conversion was forgotten, the value always little-endian; seven tags, sizes in KiB, swap
  traffic in pages of the guest.  The first buffer is posted before anything was stored in it: it means nothing.

`values` always speak of bytes and counts.  Where a name is QEMU's the unit is too; what only the patch has, or counts
otherwise, has a name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from devices.virtio import spec
from devices.virtio.spec import ByteOrder

MAX_ENTRIES = 1024
"""More entries of one buffer are not looked at; Linux sends 16."""


class Meaning(NamedTuple):
    """The name of a statistic and what its value is to be multiplied by."""

    name: str
    factor: int = 1


class StatsFormat(NamedTuple):
    """`entry_bytes` of each entry, its dtype in both byte orders, and what the tags mean.  With `primed` the first
    buffer of every driver holds nothing."""

    name: str
    entry_bytes: int
    entries: Mapping[ByteOrder, np.dtype[np.void]]
    tags: Mapping[int, Meaning]
    primed: bool

    def values(self, raw: tuple[tuple[int, int], ...]) -> dict[str, int]:
        """The statistics with a known tag by name; the last wins."""
        known = ((self.tags.get(tag), value) for tag, value in raw)
        return {meaning.name: value * meaning.factor for meaning, value in known if meaning is not None}


def _v2_entry(order: ByteOrder) -> np.dtype[np.void]:
    return np.dtype({"names": ["tag", "val"], "formats": [f"{order}u2", "<u4"], "offsets": [0, 4], "itemsize": 8})


FINAL: Final = StatsFormat(
    "final",
    spec.virtio_balloon_stat.itemsize,
    {"<": spec.virtio_balloon_stat, ">": spec.virtio_balloon_stat.newbyteorder(">")},
    {tag: Meaning(stat.name) for tag, stat in spec.BALLOON_STATS.items()},
    primed=False,
)
V2: Final = StatsFormat(
    "v2",
    8,
    {"<": _v2_entry("<"), ">": _v2_entry(">")},
    {
        0: Meaning("stat-swap-in-pages"),
        1: Meaning("stat-swap-out-pages"),
        2: Meaning("stat-anonymous-memory", 1024),
        3: Meaning("stat-major-faults"),
        4: Meaning("stat-minor-faults"),
        5: Meaning("stat-free-memory", 1024),
        6: Meaning("stat-total-memory", 1024),
    },
    primed=True,
)
FORMATS: Final = {layout.name: layout for layout in (FINAL, V2)}


class Report(NamedTuple):
    """What one buffer said.  `raw` are its (tag, value) pairs in the order sent, `values` those with a known tag by
    name (the last wins), `ignored_bytes` what was left over at the end or beyond the bound."""

    raw: tuple[tuple[int, int], ...]
    values: dict[str, int]
    ignored_bytes: int
    format: str = FINAL.name


def parse(payload: bytes, sent_bytes: int, layout: StatsFormat = FINAL, order: ByteOrder = "<") -> Report:
    """`payload` holds the first bytes of a buffer of `sent_bytes`; entries come in any order."""
    count = min(len(payload) // layout.entry_bytes, MAX_ENTRIES)
    entries = np.frombuffer(payload, layout.entries[order], count)
    raw = tuple(zip(entries["tag"].tolist(), entries["val"].tolist(), strict=True))
    return Report(raw, layout.values(raw), sent_bytes - count * layout.entry_bytes, layout.name)


def report_of(raw: tuple[tuple[int, int], ...], ignored_bytes: int, format: str) -> Report:
    """A report put back from a saved state.  ValueError for a format that there is not."""
    if format not in FORMATS:
        raise ValueError(f"the format must be {' or '.join(FORMATS)}, not {format!r}")
    return Report(raw, FORMATS[format].values(raw), ignored_bytes, format)
