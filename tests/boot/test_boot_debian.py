"""`vmm boot debian` as a user runs it, with Debian's real kernel; only the fetching is done before, so that no test
needs a network."""

from __future__ import annotations

import hashlib
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
ROOT = Path(__file__).resolve().parents[2]


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


def test_files_of_some_mebibytes_come_back_in_seconds(environment: dict[str, str], tmp_path: Path) -> None:
    """A byte at a time they would need longer than this test is patient."""
    returned, script = tmp_path / "returned", tmp_path / "script"
    script.write_text(
        "#!/bin/sh\ndd if=/dev/urandom of=/out/big bs=64k count=192 2>/dev/null\nmd5sum </out/big\n", encoding="utf-8"
    )
    done = vmm(environment, "--run", str(script), "--out", str(returned), "--json")
    assert done.returncode == 0, done.stderr
    data = (returned / "big").read_bytes()
    assert len(data) == 12 << 20
    assert hashlib.md5(data, usedforsecurity=False).hexdigest() in json.loads(done.stdout)["console"]


def test_a_folder_arrives_as_it_is_and_comes_back(environment: dict[str, str], tmp_path: Path) -> None:
    """Folders in folders, programs, links, names with blanks and beyond ASCII; links do not come back."""
    given, returned, script = tmp_path / "given", tmp_path / "returned", tmp_path / "script"
    deep = given / "a b" / "ümläut" / "deep"
    deep.mkdir(parents=True)
    (given / "empty").mkdir()
    (deep / "naïve file").write_text("found\n", encoding="utf-8")
    (given / "tool").write_text("#!/bin/sh\necho ran\n", encoding="utf-8")
    (given / "tool").chmod(0o755)
    (given / "link").symlink_to("a b/ümläut")
    (given / "nowhere").symlink_to("/not/there")
    script.write_text(
        '#!/bin/sh\ncd /data && cat "link/deep/naïve file" && ./tool && [ -d empty ] && [ -L nowhere ] || exit 9\n'
        'cp -a . /out/ && echo made >"/out/ö ä"\n',
        encoding="utf-8",
    )
    done = vmm(environment, "--run", str(script), "--add", f"{given}:/data", "--out", str(returned), "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["outcome"]) == (0, "quit"), report["console"][-1000:]
    assert report["console"].splitlines()[-2:] == ["found", "ran"]
    assert (returned / "ö ä").read_text(encoding="utf-8") == "made\n"
    assert (returned / "a b/ümläut/deep/naïve file").read_text(encoding="utf-8") == "found\n"
    assert (returned / "tool").stat().st_mode & 0o777 == 0o755
    assert {path.name for path in returned.iterdir()} == {"a b", "empty", "tool", "ö ä"}
    assert "2 of other kinds left out" in done.stderr


def test_a_kernel_that_panics_before_it_can_report_it_is_no_success(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    for task in ([], ["--run", str(script)]):
        done = vmm(environment, "--append", "rdinit=/nonexist", *task, "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["outcome"], report["exit_code"]) == (3, "guest-panicked", 3)
        assert "panicked and reset the machine: VFS: Unable to mount root fs" in report["detail"]


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


def test_a_shell_in_a_snapshot_is_there_again_as_often_as_one_likes(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """With all that it knows; its input is a pipe or a terminal, as one likes, and nothing is booted."""
    path = tmp_path / "shell.snap"
    words = [sys.executable, "-m", "vmm", "boot", "debian", "--shell", "--clock", "virtual"]
    words += ["--snapshot-at", f"20s={path}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        assert process.stdin is not None
        process.stdin.write(b"colour=blue\n")
        process.stdin.flush()
        end = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        process.kill()

    words = [sys.executable, "-m", "vmm", "boot", "--restore", str(path), "--shell"]
    for status in (5, 6):
        typed = f"echo it is $colour\nexit {status}\n"
        done = subprocess.run(
            words, input=typed, env={}, cwd=ROOT, text=True, capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert (done.returncode, done.stderr) == (status, "")
        assert "it is blue" in done.stdout
        assert "entering the guest" not in done.stdout

    ours, theirs = pty.openpty()
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        os.write(ours, b"echo still $colour\r")
        _read_until(ours, b"still blue", b"")
        os.write(ours, b"\x01x")
        assert process.wait(PATIENCE_S) == 130
    finally:
        process.kill()
        process.wait()
    os.close(ours)
    os.close(theirs)


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
