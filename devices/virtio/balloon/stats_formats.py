"""The two layouts of a statistics buffer: the final one, and the one of the patch that began it all.

Owns what the bytes of an entry mean.  `docs/balloon.md` tells how one became the other.

- "final" (§5.5.6.3): packed {u16 tag, u64 value}, 10 bytes, both in the driver's byte order; sizes in bytes.
- "v2", the patch as it was posted in November 2009: {u16 tag, 2 bytes of padding, u32 value}, 8 bytes; the tag in the
  driver's order, since the conversion was forgotten, the value always little-endian; seven tags, sizes in KiB, swap
  traffic in pages of the guest.  The first buffer is posted before anything was stored in it: it means nothing.

  The patch is older than the modern interface, and a driver that lays statistics out like this does so over any: the
  tag is in the order of the driver's processor there too.

`values` always speak of bytes and counts.  Where a name is QEMU's the unit is too; what only the patch has, or counts
otherwise, has a name of its own.

Nobody says which layout a driver uses, so one may meet a device that reads the other.  `misfit` tells where that is
certain; where it is not, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    buffer of every driver holds nothing; with `native` its order is the processor's whatever the interface."""

    name: str
    entry_bytes: int
    entries: Mapping[ByteOrder, np.dtype[np.void]]
    tags: Mapping[int, Meaning]
    primed: bool
    native: bool

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
    native=False,
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
    native=True,
)
FORMATS: Final = {layout.name: layout for layout in (FINAL, V2)}


UNKNOWN: Final = "unknown"
MISFITS: Final = ("", UNKNOWN, *FORMATS)


class Report(NamedTuple):
    """What one buffer said.  `raw` are its (tag, value) pairs in the order sent, `values` those with a known tag by
    name (the last wins), `ignored_bytes` what was left over at the end or beyond the bound.  With a `misfit` the buffer
    was not laid out as it was read, and says nothing."""

    raw: tuple[tuple[int, int], ...]
    values: dict[str, int]
    ignored_bytes: int
    format: str = FINAL.name
    misfit: str = ""


def parse(payload: bytes, sent_bytes: int, layout: StatsFormat = FINAL, order: ByteOrder = "<") -> Report:
    """`payload` holds the first bytes of a buffer of `sent_bytes`; entries come in any order."""
    raw = _entries(payload, layout, order)
    return Report(raw, layout.values(raw), sent_bytes - len(raw) * layout.entry_bytes, layout.name)


def misfit(payload: bytes, sent_bytes: int, report: Report, orders: Mapping[str, ByteOrder]) -> str:
    """What else a buffer certainly is, which was read as `report`: the name of another layout, "unknown", or "".

    Another layout: read as that it is faultless, with whole entries of known tags, each once; read as its own a tag
    comes twice or is not known.  Unknown: it is no whole number of entries, which it must be (§5.5.6.3.1), and no tag
    is known.  `orders` are the byte orders that the layouts would have."""
    tags = FORMATS[report.format].tags
    if sent_bytes != len(payload) or _are_known([tag for tag, _ in report.raw], tags):
        return ""
    for other in FORMATS.values():
        entries = _entries(payload, other, orders[other.name])
        is_whole = len(payload) == len(entries) * other.entry_bytes
        if other.name != report.format and is_whole and _are_known([tag for tag, _ in entries], other.tags):
            return other.name
    return UNKNOWN if report.ignored_bytes and not report.values else ""


def _are_known(tags: Sequence[int], known: Mapping[int, Meaning]) -> bool:
    """Whether all `tags` are, each once."""
    return len(set(tags)) == len(tags) and known.keys() >= set(tags)


def _entries(payload: bytes, layout: StatsFormat, order: ByteOrder) -> tuple[tuple[int, int], ...]:
    count = min(len(payload) // layout.entry_bytes, MAX_ENTRIES)
    entries = np.frombuffer(payload, layout.entries[order], count)
    return tuple(zip(entries["tag"].tolist(), entries["val"].tolist(), strict=True))


def report_of(raw: tuple[tuple[int, int], ...], ignored_bytes: int, format: str, misfit: str) -> Report:
    """A report put back from a saved state.  ValueError for a format or a misfit that there is not."""
    if format not in FORMATS:
        raise ValueError(f"statistics are laid out as {' or '.join(FORMATS)}, not as {format!r}")
    if misfit not in MISFITS or misfit == format:
        raise ValueError(f"statistics laid out as {format} cannot be taken for {misfit!r}")
    if misfit and raw:
        raise ValueError("statistics that are laid out otherwise say nothing")
    return Report(raw, FORMATS[format].values(raw), ignored_bytes, format, misfit)
