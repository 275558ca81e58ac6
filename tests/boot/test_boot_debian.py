"""`vmm boot debian` as a user runs it, with Debian's real kernel; only the fetching is done before, so that no test
needs a network."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.boot.debian import BUSYBOX_PACKAGE, KERNEL_PACKAGE, needs_debian

pytestmark = needs_debian
PATIENCE_S = 120


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user's environment whose cache holds the packages already."""
    cache = tmp_path / "cache" / "balloon-vmm" / "debian" / "current"
    cache.mkdir(parents=True)
    (cache / "boot").symlink_to(KERNEL_PACKAGE / "boot")
    (cache / "lib").symlink_to(KERNEL_PACKAGE / "lib")
    (cache / "bin").symlink_to(BUSYBOX_PACKAGE / "bin")
    (cache / "PACKAGES").write_text("linux-image-cloud-amd64 here\nbusybox-static here\n", encoding="utf-8")
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}


def vmm(environment: dict[str, str], *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmm", "boot", "debian", *words],
        input=typed,
        env=environment,
        text=True,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_script_gets_files_gives_files_back_and_its_exit_status_is_the_run_s(
    environment: dict[str, str], tmp_path: Path
) -> None:
    given, returned, script = tmp_path / "given", tmp_path / "returned", tmp_path / "script"
    given.mkdir()
    (given / "question").write_text("6*7\n", encoding="utf-8")
    script.write_text("#!/bin/sh\necho $(($(cat /data/question))) >/out/answer\nexit 7\n", encoding="utf-8")
    done = vmm(environment, "--run", str(script), "--add", f"{given}:/data", "--out", str(returned), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["outcome"], report["exit_code"]) == (7, "quit", 7), done.stderr
    assert (returned / "answer").read_text(encoding="utf-8") == "42\n"


def test_a_script_that_is_killed_does_not_look_like_one_that_ended_well(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nkill -9 $$\n", encoding="utf-8")
    assert vmm(environment, "--run", str(script)).returncode == 128 + 9


def test_a_shell_takes_its_commands_from_a_pipe(environment: dict[str, str]) -> None:
    done = vmm(environment, "--shell", typed="echo $((6 * 7))\nlsmod | grep -c virtio_balloon\nexit 3\n")
    assert done.returncode == 3, done.stderr
    assert "42" in done.stdout.split()


def test_a_shell_on_a_terminal_is_left_with_its_key_and_leaves_the_terminal_as_it_was(
    environment: dict[str, str],
) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    words = [sys.executable, "-m", "vmm", "boot", "debian", "--shell"]
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    try:
        shown = b""  # a Ctrl-C that comes before there is a shell must not end what prepares it
        for until, keys in (
            (b"entering the guest", b"\x03"),
            (b"# ", b"echo started; sleep 1000\r"),
            (b"\nstarted\r", b"\x03"),
            (b"# ", b"echo $((6*7))\r"),
            (b"\n42\r", b""),
            (b"# ", b"echo he\x01cinfo balloon\r"),  # a word is begun, and ended behind the monitor's back
            (b"balloon: actual=512\r", b"x /4i $rip\r"),
            (b"(qemu) ", b"\x01cllo\r"),
            (b"\nhello\r", b"\x01x"),
        ):
            shown = _read_until(ours, until, shown)
            os.write(ours, keys)
        status = process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert (status, termios.tcgetattr(theirs)) == (130, before)
    os.close(ours)
    os.close(theirs)


def _read_until(fd: int, text: bytes, shown: bytes) -> bytes:
    """Read until `text` comes; what came behind it."""
    end = time.monotonic() + PATIENCE_S
    while text not in shown:
        assert time.monotonic() < end, f"{text!r} did not come: {shown[-2000:]!r}"
        if select.select([fd], [], [], 1)[0]:
            shown += os.read(fd, 65536)
    return shown.partition(text)[2]


def test_the_demonstration_follows_the_target_and_hears_the_power_button(environment: dict[str, str]) -> None:
    done = vmm(environment, "-m", "256M", "--target", "128M@5s", "--powerdown", "8s", "--for", "60s", "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["outcome"]) == (0, "powered-off"), done.stderr
    assert report["balloon"]["inflated_pages"] >= (128 << 20) // 4096
    totals = [int(line.split()[2]) for line in report["console"].splitlines() if line.startswith("demo: MemTotal")]
    assert min(totals) == pytest.approx(max(totals) - 128, abs=1)
    assert report["stats"]["values"]["stat-total-memory"] >> 20 in (min(totals), max(totals))


def test_the_properties_of_the_balloon_mean_the_same_to_debian_s_driver(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """A process that needs what the balloon has gets it, and what it leaves behind goes back to the host."""
    script = tmp_path / "script"
    script.write_text(
        "#!/bin/sh\nsleep 2\necho features: $(cat /sys/bus/virtio/devices/virtio0/features)\n"
        "echo 1 >/proc/sys/vm/overcommit_memory\n"
        "dd if=/dev/zero of=/dev/null bs=100M count=1 || exit 9\nsleep 6\n",
        encoding="utf-8",
    )
    device = "virtio-balloon-pci,deflate-on-oom=on,free-page-reporting=on"
    done = vmm(environment, "-m", "256M", "--target", "128M@1s", "--run", str(script), "-device", device, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["exit_code"]) == (0, 0), done.stderr
    names = {"VIRTIO_BALLOON_F_DEFLATE_ON_OOM": 2, "VIRTIO_BALLOON_F_PAGE_REPORTING": 5}
    (bits,) = (line.split()[1] for line in report["console"].splitlines() if line.startswith("features: "))
    assert names.keys() <= set(report["features"]["negotiated"])
    assert {bits[bit] for bit in names.values()} == {"1"}

    balloon, memory = report["balloon"], report["memory"]
    assert balloon["target_pages"] == (128 << 20) // 4096
    assert 0 < balloon["actual_pages"] < balloon["target_pages"]
    assert balloon["oom_deflated_pages"] == balloon["target_pages"] - balloon["actual_pages"] > 0
    assert balloon["reported_bytes"] >= 64 << 20
    assert memory["backed_bytes_end"] < memory["backed_bytes_peak"] - (50 << 20)
