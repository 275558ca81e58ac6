"""Small mistakes in the device, as `mutations.toml` has them, and whether the statements notice.

A mutation is one change of the device's source: its text `before`, which stands in `module` exactly once, becomes
`after`.  It is tried in a process of its own (`mutant`), which loads the module with the change and tries the statement
that the mutation names over its transport.  It is caught when the statement fails.

Owns the table and the processes; refuses to know what a mistake means.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import resources

LONGEST_RUN_S = 60
WORDS = ["-m", "vmm.conformance.mutant"]
CAUGHT, NOT_CAUGHT = 10, 11  # exit statuses of the mutant's process, which no exception brings about


@dataclass(frozen=True, slots=True)
class Mutation:
    """`name` says what the device does wrong; `statement` is the id that must notice over `transport`."""

    name: str
    statement: str
    module: str
    before: str
    after: str
    transport: str = "pci"


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one mutation; `detail` is what the statement said, or what went wrong."""

    mutation: Mutation
    caught: bool
    detail: str


def mutations() -> tuple[Mutation, ...]:
    """The whole table."""
    file = resources.files("vmm.conformance") / "mutations.toml"
    return tuple(Mutation(**entry) for entry in tomllib.loads(file.read_text("utf-8"))["mutation"])


def try_all(chosen: Iterable[Mutation], progress: Callable[[Trial], None] = lambda _: None) -> Iterator[Trial]:
    """Every mutation, as many at once as there are processors; in the order in which they are done."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in as_completed([pool.submit(try_one, mutation) for mutation in chosen]):
            progress(done.result())
            yield done.result()


def try_one(mutation: Mutation) -> Trial:
    """One mutation in a process of its own."""
    words = [sys.executable, *WORDS, mutation.name]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_RUN_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Trial(mutation, False, f"{mutation.statement} did not come to an end in {LONGEST_RUN_S} s")
    if done.returncode in (CAUGHT, NOT_CAUGHT):
        return Trial(mutation, done.returncode == CAUGHT, done.stdout.strip())
    return Trial(mutation, False, "the process failed: " + (done.stderr.strip().splitlines() or ["nothing said"])[-1])
