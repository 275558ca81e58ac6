"""QEMU's spelling: every word that begins with a dash is matched whole."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import ConfigError
from vmm import options
from vmm.boot_options import WORDS as OWN_WORDS
from vmm.options import QEMU_WORDS, REFUSED

WORDS = {**OWN_WORDS, **QEMU_WORDS}


def translate(words: list[str]) -> list[str]:
    return options.translate(words, OWN_WORDS)


@pytest.mark.parametrize(
    ("words", "result"),
    [
        ([], []),
        (["hello"], ["--", "hello"]),
        (["hello", "-m", "64M"], ["--memory=64M", "--", "hello"]),
        (["-m", "size=64M", "hello"], ["--memory=64M", "--", "hello"]),
        (["-kernel", "my.elf", "-append", "a b"], ["--param=a b", "--", "my.elf"]),
        (["-device", "virtio-rng-pci,id=r"], ["--device=virtio-rng-pci,id=r"]),
        (["-serial", "stdio"], ["--serial=stdio"]),
        (["-serial", "null"], ["--serial=file:/dev/null"]),
        (["-serial", "mon:stdio"], ["--serial=mon:stdio"]),
        (["--serial=none"], ["--serial=file:/dev/null"]),
        (["--param", "none"], ["--param=none"]),
        (["--target=32M@1s", "--json"], ["--target=32M@1s", "--json"]),
        (["--target", "32M@1s"], ["--target=32M@1s"]),
        (["-nographic", "-nodefaults", "-display", "none", "-smp", "1", "-accel", "tcg"], []),
        (["--", "-odd-name"], ["--", "-odd-name"]),
        (["-"], ["--", "-"]),
        (["-help"], ["--help"]),
        (["--kernel", "my.elf", "-initrd", "a b"], ["--initrd=a b", "--", "my.elf"]),
        (["--kernel=my.elf"], ["--", "my.elf"]),
        (["-bios", "rom.bin", "-debugcon", "stdio"], ["--bios=rom.bin", "--debugcon=stdio"]),
    ],
)
def test_a_known_word_becomes_the_option_it_means(words: list[str], result: list[str]) -> None:
    assert translate(words) == result


def test_a_value_that_looks_like_an_option_stays_a_value() -> None:
    assert translate(["--param", "-smp", "-m", "-5"]) == ["--param=-smp", "--memory=-5"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-smp", "2"], "The option -smp can only be '1' here, not '2'."),
        (
            ["-machine", "q35"],
            "The option -machine is QEMU's and not supported: the board and its one CPU model follow from --arch.",
        ),
        (["-d", "int"], "The option -d is QEMU's and not supported: this version has no trace; "),
        (["-mon", "x"], "The option -mon is QEMU's and not supported: name the place itself, as in -monitor stdio "),
        (["-q"], "There is no option '-q'; did you mean '-qmp'?"),
        (["-balloon", "virtio"], "The option -balloon is QEMU's and not supported: write -device virtio-balloon-pci "),
        (["-uuid", "x"], "The option -uuid is QEMU's and not supported: a run has a name only; see --name."),
        (["-object", "rng-random,id=r"], "The option -object is QEMU's and not supported: no device here needs a back"),
        (["-chardev", "x"], "The option -chardev is QEMU's and not supported: the serial console is the only "),
        (
            ["-serial", "mon:pty"],
            "The serial console can be shared with the monitor on mon:stdio only, not on 'mon:pty'",
        ),
        (["-m6M"], "There is no option '-m6M'; did you mean '-m 6M'?"),
        (["-smpp"], "There is no option '-smpp'; did you mean '-smp'?"),
        (["-sreial", "stdio"], "There is no option '-sreial'; did you mean '-serial'?"),
        (["--tagret", "3"], "There is no option '--tagret'; did you mean '--target'?"),
        (["-kernl", "x"], "There is no option '-kernl'; did you mean '-kernel'?"),
        (["-m64M"], "There is no option '-m64M'; did you mean '-m 64M'?"),
        (["-64M"], "There is no option '-64M'; a size or a time must not be negative."),
        (["-qqqqqq"], "There is no option '-qqqqqq'."),
        (["-m"], "The option -m needs a value."),
        (["-kernel"], "The option -kernel needs a value."),
        (["--kernal", "x"], "There is no option '--kernal'; did you mean '--kernel'?"),
        (["-intrd", "x"], "There is no option '-intrd'; did you mean '-initrd'?"),
        (["-pflash", "x"], "The option -pflash is QEMU's and not supported: the firmware is one ROM image; see -bios."),
        (["--json=yes"], "The option --json takes no value, not 'yes'."),
        (["one", "two"], "There can be one guest only, not 'one' and 'two'."),
    ],
)
def test_a_word_that_cannot_be_used_gets_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        translate(words)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value).endswith((".", "?"))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_every_word_of_qemus_that_is_not_supported_says_so(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^The option .* is QEMU's and not supported: .*\.$"):
        translate([name, "value"])


@pytest.mark.parametrize("name", sorted(REFUSED))
@pytest.mark.parametrize("change", [lambda word: word[:-1], lambda word: word + "x", lambda word: "-" + word])
def test_no_suggestion_is_a_word_that_is_refused(name: str, change: Callable[[str], str]) -> None:
    """A misspelt word of QEMU's is told what the word itself would be told, and nobody is sent there."""
    with pytest.raises(ConfigError) as caught:
        translate([change(name), "value"])
    suggested = re.search(r"did you mean '(\S+)", str(caught.value))
    assert suggested is None or suggested[1] not in REFUSED


def test_no_word_is_both_known_and_refused() -> None:
    assert not WORDS.keys() & REFUSED.keys()


@given(st.text("abcdefghijklmnopqrstuvwxyz-", min_size=2, max_size=9))
def test_no_unknown_single_dash_word_ever_reaches_the_parser(word: str) -> None:
    name = "-" + word
    try:
        result = translate([name, "1"])
    except ConfigError:
        return
    assert name in WORDS or name in ("--", "-kernel")
    assert all(part.startswith("--") or part in ("1", "") for part in result)
