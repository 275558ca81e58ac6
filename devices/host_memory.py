"""Opens what the host has behind guest RAM, and says why it cannot.

Owns the sentences, and the name by which others find the file.  Refuses to know what RAM is for; the system calls are
`devices.hostcalls`'.

Huge pages are the host's to set aside beforehand.  All that RAM takes are promised to it when it is mapped, so that a
host that has too few says so then.  The file is a whole number of them; what of it lies in no region is no RAM.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from devices import hostcalls
from devices.backing import Backing, BackingName
from devices.errors import ConfigError

_LONGEST_NAME = 249  # bytes, of a memory file
_NO_SUCH_SIZE = (errno.ENODEV, errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class OpenBacking:
    """What there really is: `kind`, the descriptor of the memory file or None, and how large the pages are in which the
    host gives memory and takes it back."""

    kind: BackingName
    fd: int | None
    page_bytes: int


def open_backing(wanted: Backing, name: str, layout: Sequence[tuple[int, int]]) -> OpenBacking:
    """A new backing for RAM with this layout.  A host without memory files gives anonymous memory instead of one.
    ConfigError where there are no huge pages of that size; whether there are enough mapping it finds out."""
    size = layout[-1][0] + layout[-1][1]
    if wanted.kind == "hugepages":
        try:
            fd, page_bytes = hostcalls.create_huge_file(_telling_name(name, layout), size, wanted.page_bytes)
        except OSError as error:
            raise ConfigError(_no_huge_pages(wanted.page_bytes, error)) from error
        return OpenBacking("hugepages", fd, page_bytes)
    memory_file = hostcalls.create_memory_file(name, size) if wanted.kind == "memfd" else None
    return OpenBacking("anonymous" if memory_file is None else "memfd", memory_file, hostcalls.PAGE_BYTES)


def too_few_pages(pages: int, page_bytes: int, error: OSError) -> ConfigError:
    """What to say where `pages` huge pages could not be set aside."""
    every, free = hostcalls.huge_page_pools().get(page_bytes, (0, 0))
    path = f"/sys/kernel/mm/hugepages/hugepages-{page_bytes >> 10}kB/nr_hugepages"
    size = size_text(page_bytes)
    if error.errno != errno.ENOMEM or free >= pages:
        return ConfigError(f"the host refuses {pages} huge pages of {size} for guest RAM: {error.strerror}")
    return ConfigError(
        f"guest RAM takes {pages} huge pages of {size} and the host has {free} to spare: as root, "
        f"'echo {every - free + pages} > {path}' sets more aside"
    )


def _no_huge_pages(page_bytes: int, error: OSError) -> str:
    sizes = [size_text(size) for size in sorted(hostcalls.huge_page_pools())]
    if error.errno not in _NO_SUCH_SIZE:
        return f"the host refuses huge pages for guest RAM: {error.strerror}"
    if not sizes:
        return "the host has no huge pages for guest RAM: its kernel does not know them"
    wanted = f" of {size_text(page_bytes)}" if page_bytes else ""
    return f"the host has no huge pages{wanted} for guest RAM, only of {' and '.join(sizes)}"


def size_text(page_bytes: int) -> str:
    """The size of a page: "2 MiB"."""
    shift, unit = next((shift, unit) for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if page_bytes >> shift)
    return f"{page_bytes >> shift} {unit}"


# -- the name of a file in huge pages ----------------------------------------------------------------------------------
#
# Its mappings are whole huge pages, so a memory map does not show where RAM ends.  The name does, to whoever looks.


def _telling_name(name: str, layout: Sequence[tuple[int, int]]) -> str:
    told = f"{name}@{','.join(f'{gpa:x}+{size:x}' for gpa, size in layout)}"
    return told if len(told.encode()) <= _LONGEST_NAME else name


def layout_in(file_name: str, name: str) -> tuple[tuple[int, int], ...]:
    """The (gpa, size) of each region that the name of a memory file tells; none where it is no such name."""
    if not file_name.startswith(f"{name}@"):
        return ()
    try:
        pieces = [piece.split("+") for piece in file_name.removeprefix(f"{name}@").split(",")]
        return tuple((int(gpa, 16), int(size, 16)) for gpa, size in pieces)
    except ValueError:
        return ()
