"""How a run ended, in words that stay the same."""

from __future__ import annotations

from dataclasses import dataclass

from vmm.cpu import Exit


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: one of the documented words, the exit status that goes with it, and a sentence."""

    kind: str
    exit_code: int
    detail: str


def describe_triple_fault(exit_: Exit, doubt: str = "") -> str:
    """The first exception that could not be delivered, where it was, what speaks against the guest's file if anything
    does, and the registers."""
    names = [name for name in exit_.registers if name not in ("cs", "rip")]
    values = " ".join(f"{name}={exit_.registers[name]:x}" for name in names)
    place = f"{exit_.registers['cs']:04x}:{exit_.registers['rip']:016x}"
    return f"{with_doubt(f'exception {exit_.vector} at {place} could not be delivered', doubt)}; {values}"


def with_doubt(sentence: str, doubt: str) -> str:
    """How a guest died, and what speaks against its file if anything does."""
    return f"{sentence}, and {doubt}" if doubt else sentence
