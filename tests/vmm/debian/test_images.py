"""Fetching Debian's kernel and busybox, with an apt that a test can break, and the cache that results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices.errors import ConfigError
from tests.vmm.debian.fake_apt import FakeApt, install
from vmm.debian.images import DebianImages, debian_images

HOW_ELSE = "vmm boot --kernel FILE --initrd FILE --append console=ttyS0."


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    fake = install(tmp_path / "programs", monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return fake


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "xdg" / "balloon-vmm" / "debian"


def get(*, fetch: bool = False) -> tuple[DebianImages, list[str]]:
    """The images, and the lines that were told."""
    lines: list[str] = []
    return debian_images(lines.append, fetch=fetch), lines


def refusal(*, fetch: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        get(fetch=fetch)
    return str(caught.value)


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.name not in ("current", "lock"))


def test_the_first_use_fetches_what_the_newest_package_depends_on(apt: FakeApt, cache: Path) -> None:
    images, lines = get()
    assert images.kernel.read_text() == "linux-image-6.1.0-1-cloud-amd64_1%3a6.1.1-1_amd64.deb"
    assert images.modules == images.kernel.parents[1] / "lib/modules/6.1.0-1-cloud-amd64"
    assert images.busybox.is_file()
    assert images.packages == ("linux-image-6.1.0-1-cloud-amd64 1:6.1.1-1", "busybox-static 1:6.1.1-1")
    assert lines[0] == "reading what apt's sources offer"
    assert "linux-image-6.1.0-1-cloud-amd64 1:6.1.1-1 and busybox-static 1:6.1.1-1" in lines[-1]
    assert [call[:2] for call in apt.calls()] == [
        ["apt-get", "update"],
        ["apt-cache", "show"],
        ["apt-get", "download"],
        ["dpkg-deb", apt.calls()[3][1]],
        ["dpkg-deb", apt.calls()[4][1]],
    ]


def test_apt_works_in_folders_of_its_own_and_leaves_the_system_alone(apt: FakeApt, cache: Path) -> None:
    get()
    for options in apt.options():
        for name in ("Dir::State::Lists", "Dir::Cache"):
            assert options[name].startswith(f"{cache}/")
        assert options["Dir::State::status"] == "/dev/null"
    assert all(folder.startswith(f"{cache}/") for folder in apt.folders())


def test_a_later_use_needs_no_apt_and_says_so(apt: FakeApt, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = get()
    calls = len(apt.calls())
    monkeypatch.setenv("PATH", "/nowhere")
    again, lines = get()
    assert again == first
    assert len(apt.calls()) == calls
    assert len(lines) == 1 and "from the cache" in lines[0] and "--fetch looks for newer ones" in lines[0]


def test_fetch_replaces_the_current_one_and_keeps_the_one_before(apt: FakeApt, cache: Path) -> None:
    first, _ = get()
    for number in (2, 3):
        apt.set(kernel=f"6.1.0-{number}")
        images, _ = get(fetch=True)
        assert f"6.1.0-{number}-cloud-amd64" in images.kernel.name
    assert not first.kernel.exists()
    assert len(leftovers(cache)) == 2


def test_fetch_that_finds_nothing_newer_unpacks_nothing(apt: FakeApt) -> None:
    first, _ = get()
    unpacked = sum(call[0] == "dpkg-deb" for call in apt.calls())
    again, _ = get(fetch=True)
    assert again == first
    assert sum(call[0] == "dpkg-deb" for call in apt.calls()) == unpacked


# -- what can go wrong ---------------------------------------------------------------------------------------------


def test_without_apt_it_says_how_to_bring_a_kernel(
    apt: FakeApt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refusal()
    assert said.startswith("This system lacks apt-get, apt-cache and dpkg-deb; ")
    assert said.endswith(HOW_ELSE)


def test_without_a_network_it_says_why_and_how_to_bring_a_kernel(apt: FakeApt, cache: Path) -> None:
    apt.set(offline=True)
    said = refusal()
    assert said.startswith("apt's sources offer no linux-image-cloud-amd64: Failed to fetch http://deb.example")
    assert said.endswith(HOW_ELSE)
    assert leftovers(cache) == []


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("download", "apt-get download failed: no space left; "),
        ("dpkg-deb", "_amd64.deb cannot be unpacked: no space left; "),
    ],
)
def test_a_step_that_fails_leaves_nothing_half(step: str, said: str, apt: FakeApt, cache: Path) -> None:
    apt.set(fails={step: "E: no space left"})
    assert said in refusal()
    assert leftovers(cache) == []
    apt.set(fails={})
    assert get()[0].kernel.exists()


def test_lists_that_the_disk_could_not_hold_are_named_where_a_package_is_missed_for_it(apt: FakeApt) -> None:
    apt.set(warns="W: No space left on device\n", fails={"download": "E: Can't select candidate version"})
    said = (
        "apt-get download failed: Can't select candidate version (apt-get update had said: No space left on device); "
    )
    assert refusal().startswith(said)


def test_a_failed_fetch_leaves_the_cache_as_it_was(apt: FakeApt) -> None:
    first, _ = get()
    apt.set(kernel="6.1.0-9", fails={"download": "E: gone"})
    refusal(fetch=True)
    assert get()[0] == first


def test_packages_without_what_is_needed_are_not_kept(apt: FakeApt, cache: Path) -> None:
    apt.set(without=["boot/"])
    assert "have no kernel, no modules or no busybox" in refusal()
    assert leftovers(cache) == []


def test_sources_without_the_kernel_are_told(apt: FakeApt) -> None:
    apt.set(kernel=None)
    assert refusal().startswith("apt's sources offer no linux-image-cloud-amd64; ")


def test_a_cache_that_lost_a_file_is_told(apt: FakeApt) -> None:
    images, _ = get()
    images.busybox.unlink()
    assert "is not complete: remove it, and it is fetched again." in refusal()


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(
    apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert refusal().endswith("cannot be used: Not a directory.")


def test_a_relative_cache_home_is_ignored_as_the_specification_says(
    apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert str(get()[0].kernel).startswith(f"{tmp_path}/home/.cache/balloon-vmm/debian/")


# -- several at once -----------------------------------------------------------------------------------------------

SCRIPT = "from vmm.debian.images import debian_images; print(debian_images(print).kernel)"


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)


def test_two_at_once_fetch_once_and_both_have_it(apt: FakeApt) -> None:
    apt.set(seconds=1)
    runs = [start(), start()]
    outputs = [run.communicate(timeout=60)[0].splitlines() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert outputs[0][-1] == outputs[1][-1]
    assert sum(call[:2] == ["apt-get", "update"] for call in apt.calls()) == 1


def test_a_fetch_that_is_killed_leaves_no_cache_and_the_next_one_cleans_up(apt: FakeApt, cache: Path) -> None:
    apt.set(seconds=5)
    run = start()
    deadline = time.monotonic() + 60
    while not any(call[:2] == ["apt-get", "download"] for call in apt.calls()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert [name[:7] for name in leftovers(cache)] == [".fetch-"]
    apt.set(seconds=0)
    images, _ = get()
    assert images.kernel.exists()
    assert len(leftovers(cache)) == 1 and not leftovers(cache)[0].startswith(".fetch-")
