"""QEMU's own clients, unmodified: the library qemu.qmp, and its qmp-shell on a terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.vmm.control.running import PATIENCE_S, ROOT, VMM, Place

MIB = 1 << 20
STATS = ("stats", "--target", "", "--poll", "1", "--for", "10min")
SHELL = Path(sys.executable).with_name("qmp-shell")


def test_qemus_library_drives_a_machine_and_hears_its_events(place: Place) -> None:
    path = place.folder / "q"
    process = place.boot(*STATS, "--qmp", f"unix:{path},server=on,wait=off")
    assert not path.stat().st_mode & 0o077

    async def drive() -> list[str]:
        client = QMPClient("test")
        await client.connect(str(path))
        assert (await client.execute("query-status"))["status"] == "running"  # type: ignore[index]
        heard: list[str] = []
        with client.listener(names=("STOP", "RESUME", "BALLOON_CHANGE", "SHUTDOWN")) as events:
            await client.execute("stop")
            assert (await client.execute("query-status"))["running"] is False  # type: ignore[index]
            await client.execute("cont")
            with pytest.raises(ExecuteError, match="expects a size"):
                await client.execute("balloon", {"value": 0})
            for _ in range(100):  # until the driver is there
                if (await client.execute("x-vmm-status"))["balloon"]["driver-ready"]:  # type: ignore[index]
                    break
                await asyncio.sleep(0.1)
            await client.execute("balloon", {"value": 40 * MIB})
            while True:
                event = await events.get()
                heard.append(str(event["event"]))
                data = event.get("data")
                if isinstance(data, dict) and data.get("actual") == 40 * MIB:
                    break
            await client.execute("quit")
            heard.append(str((await events.get())["event"]))
        with suppress(EOFError):  # the machine was the first to close, as QEMU is
            await client.disconnect()
        return heard

    heard = asyncio.run(asyncio.wait_for(drive(), PATIENCE_S))
    assert heard[:3] == ["STOP", "RESUME", "BALLOON_CHANGE"] and heard[-1] == "SHUTDOWN"
    output = place.end(process)
    assert process.returncode == 0, output
    assert "ended from outside by quit" in output
    assert not path.exists() and not place.socket("vm").exists()


@contextmanager
def shell(*words: str) -> Iterator[int]:
    """qmp-shell on a terminal of its own; gives the user's end."""
    process, terminal = pty.fork()
    if process == 0:  # pragma: no cover - another process
        os.environ["TERM"] = "dumb"
        os.execv(SHELL, [str(SHELL), *words])
    try:
        yield terminal
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        os.close(terminal)


def read_until(terminal: int, pattern: str) -> str:
    shown, end_s = "", time.monotonic() + PATIENCE_S
    while not re.search(pattern, shown):
        assert time.monotonic() < end_s, f"{pattern!r} did not come: {shown[-2000:]!r}"
        if select.select([terminal], [], [], 1)[0]:
            shown += os.read(terminal, 65536).decode()
    return shown


def test_qmp_shell_connects_completes_and_carries_out(place: Place) -> None:
    place.boot(*STATS)
    with shell(str(place.socket("vm"))) as terminal:
        assert "Connected to QEMU 7.2" in read_until(terminal, r"\(QEMU\) $")
        os.write(terminal, b"query-balloon\n")
        assert re.search(r'"actual": \d+', read_until(terminal, r"\}\}\r\n"))
        os.write(terminal, b"balloon value=41943040\n")
        read_until(terminal, r'"return": \{\}')
        os.write(terminal, b"qom-get path=balloon0 property=guest-stats\n")
        assert "stat-free-memory" in read_until(terminal, r"last-update")
        os.write(terminal, b"nonsense\n")
        read_until(terminal, r"The command nonsense has not been found")
        os.write(terminal, b"query-b\t")  # it has asked query-commands
        read_until(terminal, "query-balloon")


def test_qmp_shell_for_people_speaks_to_the_monitor(place: Place) -> None:
    place.boot(*STATS)
    with shell("-H", str(place.socket("vm"))) as terminal:
        read_until(terminal, r"\(QEMU\) $")
        os.write(terminal, b"info balloon\n")
        assert "balloon: actual=64" in read_until(terminal, r"actual=\d+")
        os.write(terminal, b"info status\n")
        read_until(terminal, "VM status: running")
        os.write(terminal, b"balloon 40\n")
        os.write(terminal, b"info nope\n")
        read_until(terminal, "unknown command: 'info nope'")
    assert place.status("vm")["balloon"]["target-guest-ram"] == 40 * MIB


def test_over_a_port_of_loopback_and_over_the_standard_streams(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place.boot(*STATS, "--qmp", f"tcp:127.0.0.1:{port},server=on,wait=off")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer:
        assert peer.recv(1 << 16).startswith(b'{"QMP"')
    done = place.vmm("boot", "hello", "--qmp", "stdio", "--json")
    assert done.returncode == 2
    assert done.stderr == (
        "vmm: The standard input and output can serve one only: a protocol, the console, or --json.\n"
    )
    said = '{"execute":"qmp_capabilities"}{"execute":"query-name"}{"execute":"quit"}'
    run = subprocess.run(
        [*VMM, "boot", *STATS, "-qmp", "stdio", "-name", "here"],
        input=said,
        env=place.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    lines = run.stdout.splitlines()
    assert lines[0].startswith('{"QMP"') and lines[1:3] == ['{"return": {}}', '{"return": {"name": "here"}}']
    assert '"SHUTDOWN"' in lines[3] and lines[4] == '{"return": {}}' and len(lines) == 5
    assert run.returncode == 0 and "ended from outside" in run.stderr


def test_no_time_passes_while_somebody_is_waited_for(place: Place) -> None:
    path = place.folder / "q"
    words = ("--clock", "realtime", "--poll", "0.2", "--target", "", "--for", "1s")
    process = place.boot("stats", *words, "--qmp", f"unix:{path},server=on,wait=on")
    time.sleep(1.5)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        output = place.end(process)
    assert process.returncode == 0 and "statistics" in output


def test_with_wait_the_guest_does_not_begin_before_somebody_is_there(place: Place) -> None:
    path = place.folder / "q"
    process = place.boot("hello", "--qmp", f"unix:{path},server=on,wait=on")
    time.sleep(0.3)
    assert place.vmm("ctl", "vm", "x-vmm-status").returncode == 0  # whoever looks is not who was waited for
    assert place.status("vm")["blocks"] == 0
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path))
        output = place.end(process)
    assert f"vmm: QMP waits for somebody at unix:{path}." in output
    assert process.returncode == 0 and "hello from a guest" in output
