"""What a guest wrote on one of its consoles, kept for whoever asks later: the newest of it.

A guest may write for days; what is kept of it is bounded, in memory, in a saved state and in the report alike.  Whoever
wants all of it listens while it is written: observers and files get every byte.
"""

from __future__ import annotations

from typing import ClassVar

from devices.state import COUNTER, Bytes, Stateful, Table

KEPT_BYTES = 1 << 20


class Transcript(Stateful):
    """The last `KEPT_BYTES` that were added; `dropped_bytes` came before them and are gone."""

    STATE: ClassVar[Table] = {"_kept": Bytes(KEPT_BYTES), "dropped_bytes": COUNTER}

    def __init__(self) -> None:
        self._kept = bytearray()  # appending to bytes would copy all of it for each line
        self.dropped_bytes = 0

    def add(self, data: bytes) -> None:
        """The guest wrote `data`."""
        self._kept += data
        beyond = len(self._kept) - KEPT_BYTES
        if beyond > 0:
            del self._kept[:beyond]
            self.dropped_bytes += beyond

    def __bytes__(self) -> bytes:
        return bytes(self._kept)
