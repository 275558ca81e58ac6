"""Sizes, times, targets and whole configurations as a user writes them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import ConfigError
from vmm.config import (
    MachineConfig,
    TargetStep,
    format_size,
    host_memory_bytes,
    make_config,
    parse_duration,
    parse_size,
    parse_targets,
    parse_times,
)

MIB = 1024 * 1024
SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64", 64 * MIB),
        ("64M", 64 * MIB),
        ("64m", 64 * MIB),
        ("64MiB", 64 * MIB),
        ("64MB", 64 * MIB),
        (" 64M ", 64 * MIB),
        ("512K", 512 * 1024),
        ("1.5G", 1536 * MIB),
        (".5G", 512 * MIB),
        ("4096B", 4096),
        ("0", 0),
        ("1T", 1 << 40),
    ],
)
def test_a_size_is_read_in_its_unit_and_in_mib_without_one(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "M", "-5", "-64M", "+64M", "1e99", "inf", "nan", "0x40", "64X", "6 4M", "64M,", "٦٤M"]
)
def test_what_is_no_size_is_refused_in_one_sentence_with_the_value(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size(text)
    assert str(caught.value) == (
        f"A size must be a number with K, M, G or T (or none, for MiB), such as 64M, not {text!r}."
    )


def test_a_size_beyond_any_address_is_refused() -> None:
    assert parse_size("4095T") == 4095 << 40
    with pytest.raises(ConfigError, match=r"^A size must be smaller than 4096T, not '4096T'\.$"):
        parse_size("4096T")
    with pytest.raises(ConfigError, match="smaller than 4096T"):
        parse_size("9" * 400)


@given(st.integers(0, (1 << 52) - 1))
def test_any_number_of_bytes_can_be_written(size_bytes: int) -> None:
    assert parse_size(f"{size_bytes}B") == size_bytes


@given(st.text(max_size=12))
def test_no_text_breaks_the_readers(text: str) -> None:
    for reader in (parse_size, parse_duration, parse_targets):
        try:
            reader(text)
        except ConfigError as error:
            assert str(error).endswith((".", "?"))


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (4096, "4 KiB"), (64 * MIB, "64 MiB"), (3 << 29, "1.5 GiB"), (-MIB, "-1 MiB")],
)
def test_a_size_is_shown_in_the_largest_fitting_unit(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("2", 2 * SECOND),
        ("2s", 2 * SECOND),
        ("0.5", SECOND // 2),
        ("500ms", SECOND // 2),
        ("1us", 1000),
        ("7ns", 7),
        ("1.5min", 90 * SECOND),
        ("1h", 3600 * SECOND),
        (0, 0),
        (0.25, SECOND // 4),
        (3, 3 * SECOND),
    ],
)
def test_a_time_is_read_in_its_unit_and_in_seconds_without_one(text: str | float, time_ns: int) -> None:
    assert parse_duration(text) == time_ns


@pytest.mark.parametrize("text", ["", "s", "-1", "1e9", "inf", "nan", "2 days", "1:30", float("inf"), float("nan"), -1])
def test_what_is_no_time_is_refused(text: str | float) -> None:
    with pytest.raises(ConfigError, match=r"^A time must be a number of seconds or one with ns, us, ms, s, min or h, "):
        parse_duration(text)


def test_a_time_beyond_a_century_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^A time must be at most 100 years, not '9999999h'\.$"):
        parse_duration("9999999h")


def test_a_schedule_is_put_in_the_order_of_its_times() -> None:
    assert parse_targets("32M@2s,balloon=16M@500ms,64M") == (
        TargetStep(0, ram_bytes=64 * MIB),
        TargetStep(SECOND // 2, balloon_bytes=16 * MIB),
        TargetStep(2 * SECOND, ram_bytes=32 * MIB),
    )
    assert parse_targets("") == ()


def test_times_are_put_in_order() -> None:
    assert parse_times("2s,500ms,1") == (SECOND // 2, SECOND, 2 * SECOND)
    assert parse_times("") == ()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("32M@", "A target must be SIZE, SIZE@TIME or balloon=SIZE@TIME, not '32M@'."),
        (",32M", "A target must be SIZE, SIZE@TIME or balloon=SIZE@TIME, not ''."),
        ("@2s", "A target must be SIZE, SIZE@TIME or balloon=SIZE@TIME, not '@2s'."),
        ("ballon=3M", "A target must be SIZE or balloon=SIZE, not 'ballon=3M'; did you mean 'balloon'?"),
        ("ram=3M", "A target must be SIZE or balloon=SIZE, not 'ram=3M'."),
    ],
)
def test_a_wrong_schedule_is_refused_with_its_part(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_targets(text)
    assert str(caught.value) == sentence


def test_a_step_has_exactly_one_size() -> None:
    for sizes in ({}, {"ram_bytes": 1, "balloon_bytes": 1}):
        with pytest.raises(ConfigError, match="either the RAM left to the guest or the balloon's size"):
            TargetStep(0, **sizes)


def test_a_configuration_has_one_balloon_and_the_virtual_clock_unless_told_otherwise() -> None:
    config = make_config("hello")
    assert (config.memory_bytes, config.clock, config.targets, config.poll_ns, config.for_ns) == (
        64 * MIB,
        "virtual",
        (),
        0,
        None,
    )
    assert [(device.driver, device.id, device.slot) for device in config.devices] == [
        ("virtio-balloon-pci", "balloon0", 3)
    ]
    assert config == MachineConfig("hello")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config("hello").memory_bytes = 1  # type: ignore[misc]


def test_every_word_reaches_the_configuration() -> None:
    config = make_config(
        "x.elf", memory="128M", clock="realtime", targets="64M@1s", poll="500ms", duration="3s", parameter="a b"
    )
    assert config.memory_bytes == 128 * MIB
    assert config.clock == "realtime"
    assert config.targets == (TargetStep(SECOND, ram_bytes=64 * MIB),)
    assert (config.poll_ns, config.for_ns, config.parameter) == (SECOND // 2, 3 * SECOND, "a b")


def test_a_parameter_keeps_the_bytes_of_the_command_line() -> None:
    # Under a locale without UTF-8 Python hands on bytes it cannot read as lone surrogates.
    assert make_config("hello", parameter="gr\udcc3\udcbcn").parameter_bytes == "grün".encode()


def test_memory_may_be_given_in_bytes() -> None:
    assert make_config("hello", memory=8 * MIB).memory_bytes == 8 * MIB


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"memory": "0"}, "The memory must be at least 1 MiB, not 0 B."),
        ({"memory": "1023K"}, "The memory must be at least 1 MiB, not 1023 KiB."),
        ({"memory": -4096}, "The memory must be at least 1 MiB, not -4 KiB."),
        ({"memory": "1048577B"}, "The memory must be a whole number of 4 KiB pages, not 1048577 bytes."),
        ({"clock": "virtul"}, "The clock must be virtual or realtime, not 'virtul'; did you mean 'virtual'?"),
        ({"clock": ""}, "The clock must be virtual or realtime, not ''."),
        ({"targets": "0"}, "A target must be more than 0 and at most the machine's 64 MiB of RAM, not 0 B."),
        ({"targets": "65M"}, "A target must be more than 0 and at most the machine's 64 MiB of RAM, not 65 MiB."),
        ({"targets": "balloon=64M"}, "The balloon must be smaller than the machine's 64 MiB of RAM, not 64 MiB."),
        ({"poll": "1us"}, "The polling interval must be 0 (off) or at least 1 ms of guest time."),
        ({"duration": "0"}, "The guest time to run for must be more than 0."),
        ({"parameter": "a\0b"}, "The guest's parameter must not contain a NUL character."),
        ({"parameter": "ü" * 1024}, "The guest's parameter must have at most 2047 bytes, not 2048."),
        ({"parameter": "\ud800"}, r"The guest's parameter must be text, not '\ud800'."),
        (
            {"devices": ["virtio-rng-pci"], "poll": "1"},
            "A target or a polling interval needs a balloon, and this machine has none.",
        ),
        (
            {"hints": "1s"},
            "Asking for hints needs a balloon with free-page-hint=on, and this machine has none.",
        ),
        (
            {"hints": "1s,soon"},
            "A time must be a number of seconds or one with ns, us, ms, s, min or h, such as 2s, not 'soon'.",
        ),
        (
            {"devices": ["virtio-balloon-pci"] * 2},
            "A machine must not have more than one balloon; 'balloon1' is the second.",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(words: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config("hello", **words)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_more_memory_than_the_host_has_is_refused() -> None:
    most = host_memory_bytes()
    assert make_config("hello", memory=most).memory_bytes == most
    with pytest.raises(ConfigError, match=r"^The memory must be at most the .* that this host has, not "):
        make_config("hello", memory=most + 4096)


def test_a_guest_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"^The guest must be a name or a file, not ''\.$"):
        make_config("")
