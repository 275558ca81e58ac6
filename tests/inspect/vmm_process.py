"""A small process with guest RAM that does what it is told on its standard input: what the tests look at from outside.

One command a line, one answer a line.  `other` makes the next command run in a thread of its own.
"""

from __future__ import annotations

import os
import sys
import threading

from devices.memory import GuestMemory, Run

LAYOUT = [(0, 0xA0000), (0x100000, 1 << 20), (1 << 32, 1 << 20)]


def run(memory: GuestMemory, words: list[str]) -> object:
    """Carry out one command and give its answer."""
    match words:
        case ["write", gpa, text]:
            memory.write(int(gpa, 16), text.encode())
        case ["read", gpa, length]:
            return memory.read(int(gpa, 16), int(length)).hex()
        case ["fill"]:
            for region in memory.regions:
                region.array[:] = 0xAA
        case ["discard", *runs]:
            pairs = (run.split("+") for run in runs)
            return memory.discard([Run(int(pfn, 16), int(count)) for pfn, count in pairs])
        case ["backed"]:
            return memory.backed_bytes()
        case ["closefiles"]:
            for number in os.listdir("/proc/self/fd"):
                path = f"/proc/self/fd/{number}"
                if os.path.islink(path) and os.readlink(path).startswith("/memfd:"):
                    os.close(int(number))
        case ["other", *rest]:
            answers: list[object] = []
            thread = threading.Thread(target=lambda: answers.append(run(memory, rest)))
            thread.start()
            thread.join()
            return answers[0]
        case _:
            raise SystemExit(f"unknown command {words}")
    return "done"


def main(count: int) -> None:
    rams = [GuestMemory(LAYOUT) for _ in range(count)]
    idle = threading.Event()
    threading.Thread(target=idle.wait, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        print(run(rams[0], line.split()), flush=True)
    idle.set()


if __name__ == "__main__":
    main(int(sys.argv[1]))
