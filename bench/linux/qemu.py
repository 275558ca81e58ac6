"""QEMU as a peer: its process, its console on a pipe, its balloon through QMP.

Its own `actual` is asked for every few milliseconds, which is as exact as two seconds of inflating need; QEMU's event
for it comes once a second only.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import QMPClient, Runstate

from bench.linux.scenario import APPEND, MEMORY_MIB, MIB, Timings, measure, now

PROGRAM = "qemu-system-x86_64"
POLL_S = 0.005
PATIENCE_S = 120.0

T = TypeVar("T")


def command(kernel: Path, initrd: Path, socket: Path) -> list[str]:
    """QEMU's command line: one thread of TCG, RAM in a memory file, the kernel without a firmware's disk."""
    return [
        *(PROGRAM, "-accel", "tcg,thread=single", "-cpu", "qemu64", "-m", str(MEMORY_MIB)),
        *("-object", f"memory-backend-memfd,id=ram,size={MEMORY_MIB}M", "-machine", "pc,memory-backend=ram"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", APPEND),
        *("-device", "virtio-balloon-pci,id=balloon0", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-qmp", f"unix:{socket},server=on,wait=off"),
    ]


class Qemu:
    """One running guest.  The steps are plain calls; what must wait does so on an event loop of its own."""

    def __init__(self, words: Sequence[str], socket: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self.started = now()
        self._process = self._wait(
            asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        )
        self._socket, self._qmp, self._console = socket, QMPClient("bench"), ""

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, PATIENCE_S))

    def wait_for(self, text: str) -> float:
        self._wait(self._read_until(text))
        return now()

    async def _read_until(self, text: str) -> None:
        assert self._process.stdout is not None
        while text not in self._console:
            data = await self._process.stdout.read(65536)
            if not data:
                raise RuntimeError(f"QEMU ended before its guest said {text!r}")
            self._console += data.decode(errors="replace")
        self._console = self._console.split(text, 1)[1]

    def type(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def set_guest_ram(self, mib: int) -> float:
        return self._wait(self._balloon(mib * MIB))

    async def _balloon(self, guest_bytes: int) -> float:
        if self._qmp.runstate is Runstate.IDLE:
            await self._qmp.connect(str(self._socket))
        start = now()
        await self._qmp.execute("balloon", {"value": guest_bytes})
        while await self._actual() != guest_bytes:
            await asyncio.sleep(POLL_S)
        return now() - start

    async def _actual(self) -> int:
        answer: Any = await self._qmp.execute("query-balloon")
        return int(answer["actual"])

    def close(self) -> None:
        """Leave QMP first, which would otherwise complain, and end the process that was started here."""
        if self._qmp.runstate is Runstate.RUNNING:
            self._wait(self._qmp.disconnect())
        if self._process.returncode is None:
            self._process.kill()
        self._wait(self._process.wait())
        self._loop.close()


def run(kernel: Path, initrd: Path) -> Timings:
    """One boot, measured."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "qmp"
        peer = Qemu(command(kernel, initrd, socket), socket)
        try:
            return measure(peer, peer.started)
        finally:
            peer.close()
