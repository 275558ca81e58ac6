"""A page allocator for drivers that run without an operating system under them.

It owns a range of guest RAM that nobody else uses and hands out runs of 4096-byte pages, lowest address first, so that
a test's addresses are predictable.  It never touches the memory itself: a page's contents are its owner's business.
"""

from __future__ import annotations

PAGE_BYTES = 4096


class OutOfPages(MemoryError):
    """No run of that many free pages is left."""


class PageAllocator:
    """Free pages in [`base`, `base` + `size_bytes`); both are multiples of 4096."""

    def __init__(self, base: int, size_bytes: int) -> None:
        if base % PAGE_BYTES or size_bytes % PAGE_BYTES or size_bytes <= 0:
            raise ValueError(f"an allocator's range must be whole pages, not {size_bytes:#x} bytes at {base:#x}")
        self.base = base
        self.size_bytes = size_bytes
        self._free: list[tuple[int, int]] = [(base, size_bytes // PAGE_BYTES)]  # ascending, never adjoining
        self._taken: dict[int, int] = {}

    @property
    def free_pages(self) -> int:
        return sum(count for _, count in self._free)

    def take(self, count: int = 1) -> int:
        """The guest-physical address of `count` consecutive pages, the lowest that fit."""
        for i, (gpa, available) in enumerate(self._free):
            if available >= count:
                rest = (gpa + count * PAGE_BYTES, available - count)
                self._free[i : i + 1] = [rest] if rest[1] else []
                self._taken[gpa] = count
                return gpa
        raise OutOfPages(f"no {count} consecutive pages are free")

    def give(self, gpa: int, count: int = 1) -> None:
        """Return exactly what one `take` gave."""
        if self._taken.pop(gpa, None) != count:
            raise ValueError(f"{count} pages at {gpa:#x} were not taken together")
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, (gpa, count)]):
            if merged and merged[-1][0] + merged[-1][1] * PAGE_BYTES == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged
