"""The balloon (§5.5)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from devices.virtio import spec
from vmm.conformance.registry import check
from vmm.conformance.rig import Rig, Rigs, equal, holds
from vmm.testing import FeaturesRefused
from vmm.testing.balloon import (
    DEFLATEQ,
    DONE,
    FREE_PAGE_HINT,
    INFLATEQ,
    MUST_TELL_HOST,
    PAGE_POISON,
    STOP,
    pfn_bytes,
)
from vmm.testing.pages import PAGE_BYTES

ENTRIES = {"stat-free-memory": 4096, "stat-total-memory": 8192, "stat-swap-in": 3, "stat-available-memory": 77}
UNKNOWN_TAG = 0xBEEF
BYTE_ORDERS: Final[tuple[spec.ByteOrder, ...]] = ("<", ">")


@check("D1")
def without_must_tell_host(rigs: Rigs) -> None:
    """Did not accept MUST_TELL_HOST: the device either refuses FEATURES_OK or takes and returns requests."""
    rig = rigs()
    try:
        rig.start(without=MUST_TELL_HOST)
    except FeaturesRefused:
        return
    pfns = rig.filled()
    equal("the number of inflate requests used", len(rig.inflate(*pfns)), 1)
    equal("the number of deflate requests used", len(rig.driver.deflate(pfns)), 1)


@check("D2")
def pages_change_by_the_acknowledgement(rigs: Rigs) -> None:
    """Inflated pages: when the request is acknowledged they hold zeros or what they held, and later nothing changes."""
    rig = rigs.started()
    pfns = rig.filled(3)
    equal("the number of buffers used", len(rig.inflate(*pfns)), 1)
    first = [rig.page(pfn) for pfn in pfns]
    for pfn, content in zip(pfns, first, strict=True):
        holds(f"page {pfn:#x} holds zeros or what it held", rig.are_given([pfn]) or rig.are_kept([pfn]))
        rig.memory.write(pfn * PAGE_BYTES, b"mine again")
        equal("the page after the driver wrote to it", rig.page(pfn)[:10], b"mine again")
        rig.memory.write(pfn * PAGE_BYTES, content)


@check("D3")
def pages_are_the_drivers_after_the_deflate(rigs: Rigs) -> None:
    """Deflated a page, wrote to it, and let time and other requests pass: it keeps what was written."""
    rig = rigs.started()
    pfn, other = rig.filled(2)
    rig.inflate(pfn)
    rig.driver.transfer(DEFLATEQ, readable=[pfn_bytes([pfn])])
    rig.memory.write(pfn * PAGE_BYTES, b"mine")
    rig.inflate(other)
    rig.request_stats()
    rig.advance(10**9)
    equal("the page after its deflate request", rig.page(pfn)[:4], b"mine")


@check("D4")
def unknown_tags_are_ignored(rigs: Rigs) -> None:
    """Sent entries with an unknown tag before, between and after known ones."""
    rig = rigs.started()
    tags = {stat.name: tag for tag, stat in spec.BALLOON_STATS.items()}
    known = [(tags[name], value) for name, value in ENTRIES.items()]
    rig.hear([(UNKNOWN_TAG, 1), *known[:2], (UNKNOWN_TAG, 2), *known[2:], (0xFFFF, 3)])
    equal("the statistics", rig.statistics(), ENTRIES)
    holds("the device does not need a reset", not rig.driver.needs_reset)


@check("D5")
def any_order_will_do(rigs: Rigs) -> None:
    """Sent the same statistics, four of them and all that there are, in four orders."""
    rig = rigs.started()
    everything = {stat.name: 1000 + tag for tag, stat in spec.BALLOON_STATS.items()}
    for entries in (ENTRIES, everything):
        pairs = list(entries.items())
        for order in (pairs, pairs[::-1], pairs[2:] + pairs[:2], [pairs[1], pairs[0], *pairs[2:]]):
            rig.hear(dict(order))
            equal("the statistics", rig.statistics(), entries)


@check("D13")
def reported_pages_change_by_the_acknowledgement(rigs: Rigs) -> None:
    """Reported pages: afterwards they hold zeros or what they held, and what the driver then writes stays."""
    rig = rigs.started("free-page-reporting=on")
    pfns = rig.filled(2)
    rig.driver.report([(pfn * PAGE_BYTES, PAGE_BYTES) for pfn in pfns])
    for pfn in pfns:
        holds(f"page {pfn:#x} holds zeros or what it held", rig.are_given([pfn]) or rig.are_kept([pfn]))
        rig.memory.write(pfn * PAGE_BYTES, b"mine")
    rig.driver.transfer(INFLATEQ, readable=[pfn_bytes(rig.filled())])
    rig.advance(10**9)
    equal("the first page afterwards", rig.page(pfns[0])[:4], b"mine")


# -- hints -------------------------------------------------------------------------------------------------------------

HINTS = "free-page-hint=on"


def _hinting(rigs: Rigs, processor: spec.ByteOrder = "<") -> Rig:
    """A rig in a round of hinting, and its interrupts forgotten."""
    rig = rigs.started(HINTS, processor=processor)
    holds("FREE_PAGE_HINT was negotiated", rig.driver.features & FREE_PAGE_HINT)
    rig.start_hinting()
    return rig


def _ranges(pfns: Iterable[int]) -> list[tuple[int, int]]:
    return [(pfn * PAGE_BYTES, PAGE_BYTES) for pfn in pfns]


@check("D6")
def stop_while_hints_are_of_no_use(rigs: Rigs) -> None:
    """Read the command id before any round, after the host stopped one and lost interest, and after a reset in the
    middle of one."""
    rig = rigs.started(HINTS)
    equal("the command id before any round", rig.driver.hint_cmd_id, STOP)
    rig.start_hinting()
    holds("a round has an id of its own", rig.driver.hint_cmd_id not in (STOP, DONE))
    rig.stop_hinting()
    equal("the command id after the host stopped the round", rig.driver.hint_cmd_id, STOP)
    rig.start_hinting()
    rig.start()
    equal("the command id after a reset", rig.driver.hint_cmd_id, STOP)


@check("D7")
def ids_are_not_used_again(rigs: Rigs) -> None:
    """Let the host begin twenty rounds, with resets of the device between, in which the driver never sends STOP: every
    id is another."""
    rig = rigs.started(HINTS)
    seen = []
    for number in range(20):
        if number % 5 == 4:
            rig.start()
        rig.start_hinting()
        seen.append(rig.driver.hint_cmd_id)
        rig.driver.send_id(seen[-1])
        rig.stop_hinting()
    equal("the number of different ids", len(set(seen)), len(seen))
    holds("none is STOP or DONE", not {STOP, DONE} & set(seen))


@check("D8")
def pages_of_another_id_are_ignored(rigs: Rigs) -> None:
    """Hinted pages under no id, under a wrong one, under that of the round before, behind STOP, and the same again with
    the current id sent before: all keep what they hold."""
    rig = rigs.started(HINTS)
    pfns = rig.filled(8)  # before any round begins: nothing has been written since
    pages = iter(pfns)
    rig.start_hinting()
    old = rig.driver.hint_cmd_id
    rig.start_hinting()
    current = rig.driver.hint_cmd_id
    rig.driver.hint(_ranges([next(pages)]))
    for before in ([], [current]):
        for cmd_id in (old, 0x5555):
            for each in (*before, cmd_id):
                rig.driver.send_id(each)
            rig.driver.hint(_ranges([next(pages)]))
    for ids in ([STOP], [current, STOP], [current, STOP, old]):
        for each in ids:
            rig.driver.send_id(each)
        rig.driver.hint(_ranges([next(pages)]))
    holds("every page keeps what it holds", rig.are_kept(pfns))


@check("D9")
def only_unmodified_pages_are_modified(rigs: Rigs) -> None:
    """Hinted pages, one of them written after the id was issued: it keeps what it holds, the others hold zeros or what
    they held."""
    rig = rigs.started(HINTS)
    pfns = rig.filled(4)
    rig.start_hinting()
    rig.memory.write(pfns[1] * PAGE_BYTES, b"written since")
    rig.driver.hint_round(_ranges(pfns))
    equal("the page written since", rig.page(pfns[1])[:13], b"written since")
    for pfn in (pfns[0], *pfns[2:]):
        holds(f"page {pfn:#x} holds zeros or what it held", rig.are_given([pfn]) or rig.are_kept([pfn]))


@check("D10")
def nothing_changes_after_done(rigs: Rigs) -> None:
    """Ended a round by the driver's STOP, and one by the host in the middle, hinted more under the same id, with the id
    sent again and without, and let time pass."""
    for by_host in (False, True):
        for again in (False, True):
            rig = rigs.started(HINTS)
            pfns = rig.filled(3)
            rig.start_hinting()
            cmd_id = rig.driver.hint_cmd_id
            rig.driver.send_id(cmd_id)
            rig.driver.hint(_ranges(pfns[:1]))
            rig.done_hinting() if by_host else rig.driver.send_id(STOP)
            equal("the command id", rig.driver.hint_cmd_id, DONE)
            rig.memory.write(pfns[0] * PAGE_BYTES, b"mine again")
            before = {pfn: rig.page(pfn) for pfn in pfns}
            if again:
                rig.driver.send_id(cmd_id)
            rig.driver.hint(_ranges(pfns))
            rig.advance(10**9)
            for pfn, content in before.items():
                equal(f"page {pfn:#x} afterwards", rig.page(pfn), content)


@check("D11")
def done_is_reported(rigs: Rigs) -> None:
    """Ended a round as a driver does: the command id becomes DONE, and a configuration change says so."""
    rig = _hinting(rigs)
    rig.driver.take_interrupts()
    rig.driver.hint_round(_ranges(rig.filled(2)))
    equal("the command id", rig.driver.hint_cmd_id, DONE)
    equal("the number of configuration change notifications", rig.driver.take_interrupts().config, 1)


@check("L9")
def ids_are_native(rigs: Rigs) -> None:
    """Sent command ids from drivers of both byte orders: the round ends, which only the right id begins."""
    for processor in BYTE_ORDERS:
        rig = _hinting(rigs, processor)
        rig.driver.hint_round(_ranges(rig.filled()))
        equal("the command id after the round", rig.driver.hint_cmd_id, DONE)
        equal("the number of hinted pages", rig.balloon.hinted_pages, 1)


# -- poison ------------------------------------------------------------------------------------------------------------


@check("D12")
def poison_is_a_hint(rigs: Rigs) -> None:
    """Wrote poison_val, and inflated and deflated: it reads back, and nothing else is different."""
    rig = rigs.started("page-poison=on")
    holds("PAGE_POISON was negotiated", rig.driver.features & PAGE_POISON)
    rig.driver.poison_val = 0xAAAA_AAAA
    equal("poison_val", rig.driver.poison_val, 0xAAAA_AAAA)
    pfns = rig.filled(2)
    equal("the number of inflate requests used", len(rig.inflate(*pfns)), 1)
    equal("the number of deflate requests used", len(rig.driver.deflate(pfns)), 1)


@check("D14")
def poisoned_pages_keep_their_poison(rigs: Rigs) -> None:
    """Reported pages filled with poison_val, for the values 0, AAAAAAAAh, one of four different bytes, and those with
    one bit in one byte."""
    for value in (0, 0xAAAA_AAAA, 0x0403_0201, 1, 1 << 15, 1 << 16, 1 << 31):
        rig = rigs("page-poison=on,free-page-reporting=on")
        rig.prepare()
        rig.driver.poison_val = value
        rig.driver.driver_ok()
        content = value.to_bytes(4, "little") * (PAGE_BYTES // 4)
        pfns = rig.filled(2)
        for pfn in pfns:
            rig.memory.write(pfn * PAGE_BYTES, content)
        rig.driver.report(_ranges(pfns))
        equal(f"a page reported with poison_val {value:#x}", rig.page(pfns[0]), content)
        equal("its neighbour", rig.page(pfns[1]), content)
