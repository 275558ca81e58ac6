"""When a changed page-table entry counts: after INVLPG, CR3 for pages that are not global, and CR4.PGE for all of them.

A processor may forget translations at any other time too, so that nothing is said of what it sees before.
"""

from __future__ import annotations

import pytest

from tests.cpu.lab import PAGE_DIRECTORY, lab
from vmm.cpu import ExitReason

LARGE_PAGE, PAGE_BYTES = 0x83, 2 << 20
GLOBAL = 0x100
ENTRY = 100
OFFSET = 0x30000
FIRST, SECOND = 0, PAGE_BYTES
INVLPG, CR3 = f"invlpg {ENTRY * PAGE_BYTES + OFFSET}", "movq %cr3, %rax; movq %rax, %cr3"
PGE_OFF_AND_ON = "movq %cr4, %rax; btrq $7, %rax; movq %rax, %cr4; btsq $7, %rax; movq %rax, %cr4"


@pytest.mark.parametrize("native", [True, False], ids=["native", "callbacks"])
@pytest.mark.parametrize(
    ("flag", "forget"),
    [(0, INVLPG), (0, CR3), (0, PGE_OFF_AND_ON), (GLOBAL, INVLPG), (GLOBAL, PGE_OFF_AND_ON)],
    ids=["invlpg", "cr3", "pge", "global-invlpg", "global-pge"],
)
def test_a_changed_entry_is_seen_after(flag: int, forget: str, native: bool) -> None:
    """The page is read and written to, before and after; there and back, so that both frames had been translated."""
    there, back = (
        f"""
        movl ${frame | LARGE_PAGE | flag}, %eax
        movq %rax, {PAGE_DIRECTORY + 8 * ENTRY}
        {forget}
        movl {ENTRY * PAGE_BYTES + OFFSET}, %eax
        outl %eax, $0x80
        incl {ENTRY * PAGE_BYTES + OFFSET}
        """
        for frame in (FIRST, SECOND)
    )
    enable = "movq %cr4, %rax; btsq $7, %rax; movq %rax, %cr4\n"
    with lab(enable + 3 * (there + back) + "hlt", native=native) as bench:
        bench.memory.write_int(FIRST + OFFSET, 4, 10)
        bench.memory.write_int(SECOND + OFFSET, 4, 20)
        assert bench.run().reason is ExitReason.HALTED
        assert bench.reports == [10, 20, 11, 21, 12, 22]
        assert [bench.memory.read_int(frame + OFFSET, 4) for frame in (FIRST, SECOND)] == [13, 23]
