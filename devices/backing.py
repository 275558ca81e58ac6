"""What the host shall have behind guest RAM: a memory file, anonymous memory, or a memory file in huge pages.

A value and its names, nothing else: `devices.host_memory` opens what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BackingName = Literal["memfd", "anonymous", "hugepages"]


@dataclass(frozen=True, slots=True)
class Backing:
    """`kind`, and of huge pages how large they shall be in bytes, a power of two, or 0: what is usual on the host."""

    kind: BackingName = "memfd"
    page_bytes: int = 0


MEMFD = Backing()
