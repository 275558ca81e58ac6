"""The words of the command line, matched whole before any parser sees them.

QEMU's options are single-dash words, and an ordinary parser reads an unknown one as a cluster of letters: `-smp 2`
would become `-s -m p`.  So every word that begins with a dash is looked up here first.  The program's own words come
from whoever declares the options; a word of QEMU's that means the same becomes one of them; one that QEMU has and this
program does not gets one sentence that says what is so instead; anything else gets one with the nearest word that
exists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from devices.errors import ConfigError
from vmm.models import did_you_mean, suggest


@dataclass(frozen=True, slots=True)
class Word:
    """A word that is understood: the option it becomes (None: nothing is to do), and whether a value follows it.

    `only` is the one value that needs no action, for words such as `-display none`.
    """

    option: str | None
    has_value: bool = True
    only: str | None = None


Words: TypeAlias = Mapping[str, Word]

QEMU_WORDS: dict[str, Word] = {
    "-serial": Word("--serial"),
    "-append": Word("--param"),
    "--append": Word("--param"),
    "-device": Word("--device"),
    "-bios": Word("--bios"),
    "--firmware": Word("--bios"),
    "-initrd": Word("--initrd"),
    "-debugcon": Word("--debugcon"),
    "-name": Word("--name"),
    "-qmp": Word("--qmp"),
    "-monitor": Word("--monitor"),
    "-gdb": Word("--gdb"),
    "-s": Word("--gdb=tcp::1234", has_value=False),
    "-h": Word("--help", has_value=False),
    "-help": Word("--help", has_value=False),
    # What a QEMU user adds out of habit, and what is so here anyway.
    "-nographic": Word(None, has_value=False),
    "-nodefaults": Word(None, has_value=False),
    "-no-user-config": Word(None, has_value=False),
    "-no-reboot": Word(None, has_value=False),
    "-display": Word(None, only="none"),
    "-vga": Word(None, only="none"),
    "-nic": Word(None, only="none"),
    "-net": Word(None, only="none"),
    "-smp": Word(None, only="1"),
    "-accel": Word(None, only="tcg"),
}

_NO_DISKS = "this machine has no disks; the guest is a Linux or Multiboot kernel, an ELF file or a flat image"
_NO_TRACE = "this version has no trace; use the Python interface"
_ONE_BOARD = "the board and its one CPU model follow from --arch"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("-machine", "-M", "-cpu", "-global"), _ONE_BOARD),
    **dict.fromkeys(("-enable-kvm", "-icount"), "the CPU is always the emulator; see --clock for its time"),
    **dict.fromkeys(("-drive", "-blockdev", "-hda", "-hdb", "-cdrom", "-boot", "-snapshot", "-virtfs"), _NO_DISKS),
    **dict.fromkeys(("-dtb",), "this board describes itself in fw_cfg and PCI"),
    **dict.fromkeys(("-pflash", "-L"), "the firmware is one ROM image; see -bios"),
    **dict.fromkeys(("-netdev",), "this machine has no network"),
    **dict.fromkeys(("-vnc", "-spice", "-audio", "-usb", "-usbdevice"), "this machine has a serial console only"),
    "-numa": "RAM is in one piece; see -m",
    **dict.fromkeys(("-mem-path", "-mem-prealloc"), "what the host has behind RAM is said by --ram-backing"),
    "-object": "no device here needs a back end, and what the host has behind RAM is said by --ram-backing",
    "-chardev": "the serial console is the only character device; see -serial",
    "-balloon": "write -device virtio-balloon-pci instead",
    **dict.fromkeys(("-trace", "-d", "-D"), _NO_TRACE),
    "-mon": "name the place itself, as in -monitor stdio or -qmp unix:PATH",
    **dict.fromkeys(("-daemonize", "-pidfile", "-sandbox", "-runas"), "vmm runs in the foreground, as who starts it"),
    "-uuid": "a run has a name only; see --name",
    "-rtc": "the guest's date is fixed with the virtual clock and the host's with the realtime clock",
}


def translate(words: Sequence[str], own: Words) -> list[str]:
    """The arguments of `vmm boot` that `words` mean, in its `own` words and QEMU's.  ConfigError, one sentence, for a
    word that cannot be used."""
    known = {**own, **QEMU_WORDS}
    options: list[str] = []
    guests: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            guests += rest
        elif word in ("-kernel", "--kernel"):
            guests.append(_value_after(word, rest))
        elif word.startswith("--kernel="):
            guests.append(word.removeprefix("--kernel="))
        elif word.startswith("-") and word != "-":
            options += _translate_option(word, rest, known)
        else:
            guests.append(word)
    if len(guests) > 1:
        raise ConfigError(f"There can be one guest only, not {' and '.join(map(repr, guests))}.")
    return [*options, "--", *guests] if guests else options


def _value_after(name: str, rest: Iterator[str]) -> str:
    try:
        return next(rest)
    except StopIteration:
        raise ConfigError(f"The option {name} needs a value.") from None


def _translate_option(given: str, rest: Iterator[str], known: Words) -> list[str]:
    name, equals, value = given.partition("=") if given.startswith("--") else (given, "", "")
    word = known.get(name)
    if word is None:
        raise ConfigError(_why_not(name, known))
    if not word.has_value:
        if equals:
            raise ConfigError(f"The option {name} takes no value, not {value!r}.")
        return [] if word.option is None else [word.option]
    if not equals:
        value = _value_after(name, rest)
    if word.option is None:
        if value != word.only:
            raise ConfigError(f"The option {name} can only be {word.only!r} here, not {value!r}.")
        return []
    if word.option == "--serial":
        value = _serial_place(value)
    # One word, so that a value that begins with a dash stays a value.
    return [f"{word.option}={value.removeprefix('size=') if name == '-m' else value}"]


def _serial_place(value: str) -> str:
    """QEMU's words for the serial console, as this program's; any other word is judged where the console is opened."""
    if value in ("null", "none"):
        return f"file:{os.devnull}"
    if value.startswith("mon:") and value != "mon:stdio":
        raise ConfigError(f"The serial console can be shared with the monitor on mon:stdio only, not on {value!r}.")
    return value


def _why_not(name: str, known: Words) -> str:
    if name in REFUSED:
        return f"The option {name} is QEMU's and not supported: {REFUSED[name]}."
    if name.startswith("-m") and name[2:3].isdigit():
        return f"There is no option {name!r}; did you mean '-m {name[2:]}'?"
    nearest = suggest(name, [*known, *REFUSED, "-kernel"])
    if nearest in REFUSED and not name[1:2].isdigit():
        return f"There is no option {name!r}, and QEMU's {nearest} is not supported: {REFUSED[nearest]}."
    if name[1:2].isdigit():
        return f"There is no option {name!r}; a size or a time must not be negative."
    return f"There is no option {name!r}{did_you_mean(name, [*known, '-kernel', '--kernel'])}"
