"""The RAM that the tests of guest memory share: odd regions, with and without a memory file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devices import hostcalls
from devices.memory import GuestMemory

PAGE = 4096
MIB = 1 << 20
HIGH = 1 << 32

# Two regions that adjoin, a hole, and one above 4 GiB.
LAYOUT = [(0, 4 * PAGE), (4 * PAGE, 2 * PAGE), (8 * PAGE, 2 * PAGE), (HIGH, 4 * PAGE)]
RAM_BYTES = {address for gpa, size in LAYOUT for address in range(gpa, gpa + size)}


def no_memory_file(name: str, size: int) -> None:
    """A host without memfd_create."""


@pytest.fixture(params=["memfd", "anonymous"])
def ram(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[GuestMemory]:
    if request.param == "anonymous":
        monkeypatch.setattr(hostcalls, "create_memory_file", no_memory_file)
    with GuestMemory(LAYOUT) as memory:
        assert (memory.fd is None) == (request.param == "anonymous")
        yield memory


def is_ram(gpa: int, length: int) -> bool:
    """The definition, byte by byte: no address wraps, and an empty range must still begin in RAM."""
    if length > len(RAM_BYTES):
        return False
    return gpa in RAM_BYTES and all(address in RAM_BYTES for address in range(gpa, gpa + length))


def fill(memory: GuestMemory) -> None:
    """Touch every page."""
    for region in memory.regions:
        region.array[:] = 0xAA
