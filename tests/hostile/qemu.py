"""QEMU as a board for the driver library: its qtest protocol is a `Bus`, and no instruction is executed.

A line asks, a line answers: "OK", with a value where there is one."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

PROGRAM = shutil.which("qemu-system-x86_64")
WIDTHS = {1: "b", 2: "w", 4: "l"}


class QemuMemory:
    """Its RAM."""

    def __init__(self, ask: Callable[[str], str]) -> None:
        self._ask = ask

    def read(self, gpa: int, length: int) -> bytes:
        return bytes.fromhex(self._ask(f"read {gpa:#x} {length:#x}")[2:])

    def write(self, gpa: int, data: bytes) -> None:
        if data:
            self._ask(f"write {gpa:#x} {len(data):#x} 0x{data.hex()}")


class QemuBus:
    """A PC with 64 MiB and a modern virtio balloon at 00:03.0, as `properties` say.  Interrupts are not heard."""

    def __init__(self, folder: Path, properties: str) -> None:
        path = folder / "qtest"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(1)
            listening.settimeout(20)
            device = f"virtio-balloon-pci,disable-legacy=on,addr=3,{properties}"
            words = "-M pc -accel tcg -S -display none -vga none -nodefaults -m 64 -qtest-log /dev/null -qtest"
            self._process = subprocess.Popen(
                [str(PROGRAM), *words.split(), f"unix:{path}", "-device", device],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._socket, _ = listening.accept()
        path.unlink()
        self._socket.settimeout(20)
        self._answers = self._socket.makefile("rb")
        self.memory = QemuMemory(self.ask)

    def ask(self, line: str) -> str:
        """What it answers, without the "OK".  EOFError when it has ended."""
        try:
            self._socket.sendall(line.encode() + b"\n")
            words = self._answers.readline().decode().split()
        except ConnectionError:
            words = []
        if not words:
            raise EOFError("QEMU has ended")
        if words[0] != "OK":
            raise RuntimeError(f"{line}: {words}")
        return words[1] if len(words) > 1 else ""

    def port_read(self, port: int, size: int) -> int:
        return int(self.ask(f"in{WIDTHS[size]} {port:#x}"), 16)

    def port_write(self, port: int, size: int, value: int) -> None:
        self.ask(f"out{WIDTHS[size]} {port:#x} {value:#x}")

    def mmio_read(self, gpa: int, size: int) -> int:
        return int(self.ask(f"read{WIDTHS[size]} {gpa:#x}"), 16)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        self.ask(f"write{WIDTHS[size]} {gpa:#x} {value:#x}")

    def listen(self, address: int, callback: Callable[[int], None]) -> None:
        """Nothing comes from here."""

    def line_level(self, name: str) -> bool:
        return False

    def close(self) -> None:
        self._answers.close()
        self._socket.close()
        self._process.kill()
        self._process.wait()
