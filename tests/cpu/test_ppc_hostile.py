"""Programs of random instructions: none may end this process, hang it, or get away from its budget.

Each batch runs in a process of its own, so that a crash of the emulator is one failed test.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import pytest

from devices.memory import GuestMemory
from tests.cpu.ppc_lab import ORIGIN, Recorder
from tests.layers import ROOT
from vmm.cpu import ExitReason
from vmm.cpu.ppc.ppc_cpu import PpcCpu

PROGRAMS, WORDS, BUDGET = 400, 8, 60
# Extended opcodes of primary opcode 31 that move special registers, translate, or handle caches and reservations.
RISKY = (
    *(339, 467, 371, 83, 146, 210, 242, 306, 370, 566, 854, 982, 470, 86, 54, 246, 278, 1014, 595, 659, 20, 150),
    *(533, 597, 661, 725, 310, 438),
)
MSRS = (0x1000, 0x3000, 0x3030, 0x7000, 0x9032, 0x1001, 0x1040, 0x41000)
# Skips the instruction and goes on with translation and interrupts off: mfsrr0, addi, mtsrr0, li, mtsrr1, rfi.
HANDLER = struct.pack(">6I", 0x7D5A02A6, 0x394A0004, 0x7D5A03A6, 0x39600000, 0x7D7B03A6, 0x4C000064)


def instruction(chance: random.Random) -> int:
    opcode = chance.choice([31, 31, 31, 31, 19, 63, 59, chance.randrange(64)])
    if opcode == 31 and chance.random() < 0.5:
        return 31 << 26 | chance.getrandbits(15) << 11 | chance.choice(RISKY) << 1 | (chance.random() < 0.1)
    return opcode << 26 | chance.getrandbits(26)


def run_programs(seed: int) -> None:
    """`PROGRAMS` programs in one processor."""
    chance = random.Random(seed)
    with GuestMemory([(0, 1 << 20)]) as memory:
        cpu = PpcCpu(memory, Recorder(), ORIGIN)
        for _ in range(PROGRAMS):
            for vector in range(0x100, 0x1500, 0x100):
                memory.write(vector, HANDLER)
            program = [instruction(chance) for _ in range(WORDS)]
            memory.write(ORIGIN, struct.pack(f">{WORDS + 1}I", *program, 0x48000000))
            memory.take_writes()
            cpu.drop_translations([(0, 1 << 20)])
            cpu.reset()
            values = (0, 4, 0x8000, 0x20000, 0xFFFFFFFF, chance.getrandbits(20), chance.getrandbits(32))
            registers = {f"r{number}": chance.choice(values) for number in range(32)}
            if chance.random() < 0.3:
                registers |= {"ibat0u": 0x1FFE, "ibat0l": 2, "dbat0u": 0x1FFE, "dbat0l": 2}
            cpu.set_registers({**registers, "msr": chance.choice(MSRS)})
            cpu.set_irq(chance.random() < 0.2)
            before = cpu.blocks
            exit_ = cpu.run(BUDGET)
            assert exit_.reason in (ExitReason.BUDGET, ExitReason.HALTED)
            assert cpu.blocks - before <= BUDGET + 1
            cpu.check_state(cpu.save_state(), "cpu")
        cpu.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_programs_stay_within_their_processor(seed: int) -> None:
    words = f"from tests.cpu.test_ppc_hostile import run_programs; run_programs({seed})"
    done = subprocess.run(
        [sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
