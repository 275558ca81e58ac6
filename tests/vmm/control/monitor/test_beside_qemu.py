"""The same lines to QEMU's monitor and to this one, with the same bytes in RAM and the processor at its reset vector.

`make test-qemu` runs this where qemu-system-x86_64 is installed."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vmm.control.monitor.test_memory import AS_IN_QEMU, BYTES, PLACE
from vmm.control.monitor import Monitor
from vmm.machine import Machine

pytestmark = pytest.mark.beside_qemu

BACKEND = "/machine/peripheral/balloon0/virtio-backend"
LINES = (
    *(f"{command} {fmt} {PLACE}" for command in ("x", "xp") for fmt, _ in AS_IN_QEMU),
    *(f"xp /3{letter}{size} {PLACE + 5}" for letter in "oduxc" for size in "bhwg"),
    *(
        f"x {PLACE}",
        "x /2h 0x1000+8",
        "x /4xb 0x3fffff8",
        "xp 0x100000000000",
        "xp /2xb -8",
        "x /0xb 0",
        "x/2xb 0x1000",
    ),
    *("p 1|2+4", "p /d 3+4*2", "p ~0", "p /d -7/2", "p /d -7%2", "p /u -1", "p /o 8", "p /c 65", "p 'a'", "p /x 010"),
    *(
        "p $cs",
        "p $cs.base",
        "p $pc",
        "p $eip",
        "p $eflags",
        "p $sp",
        "p 5^1&4",
        "p (1",
        "p 1+",
        "p 1/0",
        "p $",
        "p 0x",
    ),
    *("p 99999999999999999999", "p 1 2", "p", "p foo", "x /q 0", "x", "x /1", "x 12zz", "x $foo", "x /-4xb 0"),
    *("foo", "info foo", "help foo", "help info foo", "stop 1", "info status 1", "help x", "help info pci", "? ?"),
    *("balloon", "balloon x", "balloon -5", "balloon 1M", "balloon 0", "info balloon", "info uuid", "info name"),
    *("info registers 1", "info registers x", "info registers -z", "info virtio", "info virtio-status"),
    *("info virtio-status foo", "info virtio-queue-status", f"info virtio-queue-status {BACKEND} 77"),
    *(f"info virtio-queue-status {BACKEND} {queue}" for queue in ("0", "2", "-1", "x", "")),
    f"info virtio-queue-element {BACKEND} 0",
)


@pytest.fixture(scope="module")
def qemu() -> Iterator[Any]:
    """What QEMU's monitor answers to a line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bytes").write_bytes(BYTES)
        words = [
            "qemu-system-x86_64",
            "-M",
            "pc",
            "-m",
            "64M",
            "-display",
            "none",
            "-S",
            "-nodefaults",
            "-name",
            "fred",
        ]
        words += ["-device", "virtio-balloon-pci,id=balloon0,disable-legacy=on", "-device", "virtio-rng-pci"]
        words += ["-device", f"loader,file={folder / 'bytes'},addr={PLACE},force-raw=on"]
        process = subprocess.Popen([*words, "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"])
        peer = socket.socket(socket.AF_UNIX)
        end_s = time.monotonic() + 30
        while peer.connect_ex(str(folder / "qmp")):
            assert time.monotonic() < end_s
            time.sleep(0.05)
        with peer, peer.makefile("r") as answers:

            def ask(command: str, arguments: dict[str, str]) -> Any:
                peer.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
                while "return" not in (answer := json.loads(answers.readline())):
                    pass
                return answer["return"]

            ask("qmp_capabilities", {})
            yield lambda line: ask("human-monitor-command", {"command-line": line}).replace("\r\n", "\n")
        process.kill()
        process.wait()


def test_the_answers_are_qemus(qemu: Any, machine: Machine, monitor: Monitor) -> None:
    machine.memory.write(PLACE, BYTES)
    ours = {line: monitor.execute(line) for line in LINES}
    assert ours == {line: qemu(line) for line in LINES}


def test_the_registers_have_qemus_layout(qemu: Any, monitor: Monitor) -> None:
    """But for EDX, the processor's model, and what the x87 holds after reset."""
    own, theirs = (ask("info registers").splitlines() for ask in (monitor.execute, qemu))
    differing = [line for line, other in zip(own, theirs, strict=True) if line != other]
    assert [line[:3] for line in differing] == ["EAX", "FCW"]
