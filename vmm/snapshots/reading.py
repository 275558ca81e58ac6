"""Reading a snapshot: what it says of itself at once, the rest when it is wanted.

A file that is not as it was written, or was never written here, is refused in one sentence before a machine has been
changed: `Snapshot.boot` puts it into a new one, which nobody sees until all of it is there, and `Snapshot.state` gives
it as a value when all of it was read and found whole.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from devices.errors import ConfigError
from vmm.config import PPC, MachineConfig
from vmm.loader import FIRMWARE_UNIT_BYTES, LARGEST_FIRMWARE_BYTES
from vmm.snapshots import description, plain, ram
from vmm.snapshots.layout import HEADER_BYTES, Damaged, decompress, read_header, read_part
from vmm.state import MachineState, restore

if TYPE_CHECKING:
    from vmm.machine import Machine


def read_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot at `path`.  ConfigError with one sentence where there is none, or none of this version."""
    return Snapshot(os.fspath(path))


class Snapshot:
    """A snapshot whose description was read: `config` is the machine's, without what was still to come; `clock_ns` the
    guest time at which it was taken.  A context manager; the file stays open until it ends."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = _open(path)
        self._close = weakref.finalize(self, os.close, self._fd)
        with self._sentences():
            header = read_header(self._fd, path)
            data = read_part(
                self._fd,
                header.description_offset,
                header.description_bytes,
                header.description_sha256,
                "its description",
            )
            found = self._description = description.parse(data, path)
            self._check_sizes(header.description_offset)
            self.config: MachineConfig = found.config()
            self.clock_ns = found.clock_ns

    def _check_sizes(self, end: int) -> None:
        """That the parts lie one behind the other, and none is larger than it can be."""
        found = self._description
        stored = (found.chunks_bytes, found.blobs.stored, found.tree.stored)
        if HEADER_BYTES + sum(stored) != end:
            raise Damaged("its parts do not fill it")
        description.check_sizes(found.blobs.size, found.tree.size, found.memory_bytes)
        for part in (found.blobs, found.tree):
            if part.stored > part.size + part.size // 128 + 4096:  # no frame is larger
                raise Damaged("a part of it is larger than it can be")

    def boot(self) -> Machine:
        """A new machine that goes on where the snapshot was taken.  ConfigError where it is damaged or does not fit."""
        with self._sentences():
            rom, data = self._read_state()
            with ram.RestoredRam(self._stored_ram(data)) as restored:
                return self._build(rom, MachineState(data), restored)

    def _build(self, rom: bytes, state: MachineState, restored: ram.RestoredRam) -> Machine:
        """The machine around the memory that is being filled."""
        from vmm.boards import Saved  # only now: meanwhile RAM is read
        from vmm.machine import Machine

        machine = Machine(self.config, Saved(rom, restored.memory))
        try:
            restore(machine, state, restored)
        except BaseException:
            machine.close()
            raise
        return machine

    def state(self) -> MachineState:
        """All of it as `Machine.save` gives it, for `Machine.restore`.  It takes as much memory as the guest's RAM has
        backed.  ConfigError where it is damaged."""
        with self._sentences():
            _, data = self._read_state()
            data["memory"] = ram.contents(self._stored_ram(data))
            return MachineState(data)

    def _read_state(self) -> tuple[bytes, dict[str, Any]]:
        """The firmware's ROM, and the state without the contents of RAM."""
        found = self._description
        offset, parts = HEADER_BYTES + found.chunks_bytes, []
        for part, what in ((found.blobs, "its blobs"), (found.tree, "its tree")):
            parts.append(decompress(read_part(self._fd, offset, part.stored, part.sha256, what), part.size, what))
            offset += part.stored
        blobs, tree = parts
        fields = plain.decode(tree, blobs)
        rom, data = fields.get("rom"), fields.get("state")
        if type(rom) is not bytes or not isinstance(data, dict) or len(fields) != 2 or not self._can_be_rom(rom):
            raise Damaged("its state is none")
        return rom, data

    def _can_be_rom(self, rom: bytes) -> bool:
        if self.config.arch == PPC:
            return not rom
        return 0 < len(rom) <= LARGEST_FIRMWARE_BYTES and len(rom) % FIRMWARE_UNIT_BYTES == 0

    def _stored_ram(self, data: dict[str, Any]) -> ram.StoredRam:
        return ram.StoredRam(
            self._fd, data.get("memory"), self._description.chunks_bytes, self._description.memory_bytes
        )

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """What is wrong with the file becomes one sentence that names it."""
        if not self._close.alive:
            raise ConfigError(f"The snapshot {self.path!r} is closed.")
        try:
            yield
        except Damaged as error:
            raise ConfigError(f"The snapshot {self.path!r} is damaged: {error}.") from None
        except OSError as error:
            raise ConfigError(f"The snapshot {self.path!r} cannot be read: {error.strerror}.") from error

    def close(self) -> None:
        """Close the file; a second time is no error."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _open(path: str) -> int:
    """The file, which must be an ordinary one: it is read at any place."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe without a writer opens at once, too
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path!r}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"The snapshot {path!r} cannot be read: {reason}.") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigError(f"The snapshot {path!r} must be an ordinary file.")
    return fd
