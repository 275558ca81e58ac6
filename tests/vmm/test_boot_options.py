"""The options of `vmm boot`: one declaration each, and what follows from it."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest

from tests.vmm.kernels import bzimage, vmlinux
from vmm.boot_options import WORDS, BootOptions
from vmm.options import QEMU_WORDS

MIB = 1 << 20


def test_every_field_but_the_guest_has_its_word() -> None:
    renamed = {"duration": "for", "watch_driver": "watch-driver", "ram_backing": "ram-backing"}
    renamed |= {"snapshot_at": "snapshot-at"}
    expected = {f"--{renamed.get(field.name, field.name)}" for field in fields(BootOptions)} - {"--guest"}
    assert {word.option for word in WORDS.values()} - {"--help"} == expected


def test_an_option_has_a_value_unless_it_is_a_flag() -> None:
    flags = {"--help", "--json", "--shell", "--fetch", "--watch-driver", "--paused", "-S"}
    assert {name for name, word in WORDS.items() if not word.has_value} == flags


def test_a_short_name_means_the_long_one() -> None:
    assert WORDS["-m"].option == "--memory"


def test_words_of_qemu_become_options_that_exist() -> None:
    options = {word.option.partition("=")[0] for word in QEMU_WORDS.values() if word.option is not None}
    assert options <= set(WORDS)


def test_without_a_word_it_is_the_stats_guest_and_its_demonstration() -> None:
    config = BootOptions().config()
    assert (config.guest, config.memory_bytes) == ("stats", 64 * MIB)
    assert config.targets and config.poll_ns and config.for_ns


def test_asking_for_hints_gives_the_one_balloon_that_feature_and_no_other_one() -> None:
    config = BootOptions(hint="3s,500ms").config()
    assert config.hints_ns == (500_000_000, 3_000_000_000)
    assert config.has_hinting
    assert not BootOptions().config().has_hinting
    own = BootOptions(hint="1s", device=["virtio-balloon-pci,free-page-hint=on,id=mine"]).config()
    assert own.devices[0].id == "mine"


def test_what_the_user_says_replaces_that_part_of_the_demonstration_only() -> None:
    config = BootOptions(target="", poll="0").config()
    assert (config.targets, config.poll_ns) == ((), 0)
    assert config.for_ns == BootOptions().config().for_ns


def test_firmware_of_the_users_own_runs_without_a_guest() -> None:
    config = BootOptions(bios="rom.bin").config()
    assert (config.guest, config.targets, config.for_ns) == ("", (), None)


def test_linux_gets_more_ram_where_nothing_is_said(tmp_path: Path) -> None:
    for name, data, mib in (("vmlinuz", bzimage(), 512), ("other", vmlinux(), 64), ("empty", b"", 64)):
        (tmp_path / name).write_bytes(data)
        assert BootOptions(guest=str(tmp_path / name)).config().memory_bytes == mib * MIB
    assert BootOptions(guest=str(tmp_path / "vmlinuz"), memory="96M").config().memory_bytes == 96 * MIB
    assert BootOptions(guest=str(tmp_path / "missing")).config().memory_bytes == 64 * MIB


def test_a_pipe_is_not_read_to_find_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert BootOptions(guest=str(tmp_path / "pipe")).config().memory_bytes == 64 * MIB  # opening it would wait for ever


@pytest.mark.parametrize(
    ("serial", "console", "shares", "clock"),
    [("stdio", "stdio", False, "virtual"), ("mon:stdio", "stdio", True, "realtime"), ("", "", False, "virtual")],
)
def test_a_console_that_is_shared_with_the_monitor(serial: str, console: str, shares: bool, clock: str) -> None:
    options = BootOptions(serial=serial)
    assert (options.console, options.shares_console) == (console, shares)
    assert options.config().clock == clock, "who can drive the machine lives in the host's time"
