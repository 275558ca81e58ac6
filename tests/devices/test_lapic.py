"""The local APIC against Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller"."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.effects import NOTHING, Effects
from devices.irq.apic_timer import MIN_INTERVAL_NS
from devices.irq.lapic import LocalApic

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR_LOW, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x320, 0x380, 0x10)
INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x380, 0x390, 0x3E0
DIVIDE_BY_1 = 0b1011
MASKED, PERIODIC = 1 << 16, 1 << 17
MSI = 0xFEE0_0000


def get(apic: LocalApic, offset: int, now_ns: int = 0) -> int:
    return apic.read(offset, 4, now_ns)[0]


def put(apic: LocalApic, offset: int, value: int, now_ns: int = 0) -> Effects:
    return apic.write(offset, 4, value, now_ns)


def vectors(apic: LocalApic, base: int) -> set[int]:
    """The vectors whose bits are set in the eight words from `base` on."""
    return {32 * word + bit for word in range(8) for bit in range(32) if get(apic, base + 16 * word) >> bit & 1}


@pytest.fixture
def apic() -> LocalApic:
    """An APIC that software has enabled, with FFh as the spurious vector."""
    apic = LocalApic()
    put(apic, SVR, 0x1FF)
    return apic


def start_timer(apic: LocalApic, count: int, lvt: int, now_ns: int = 0) -> None:
    put(apic, DIVIDE, DIVIDE_BY_1, now_ns)
    put(apic, LVT_TIMER, lvt, now_ns)
    put(apic, INITIAL_COUNT, count, now_ns)


class TestAfterReset:
    @pytest.mark.parametrize(
        ("offset", "value"),
        [
            (ID, 0),
            (TPR, 0),
            (PPR, 0),
            (LDR, 0),
            (DFR, 0xFFFF_FFFF),
            (SVR, 0xFF),
            (ESR, 0),
            (ICR_LOW, 0),
            (ICR_HIGH, 0),
            (INITIAL_COUNT, 0),
            (CURRENT_COUNT, 0),
            (DIVIDE, 0),
            *[(lvt, MASKED) for lvt in range(LVT_TIMER, LVT_ERROR + 1, 0x10)],
        ],
    )
    def test_registers_have_the_values_of_the_sdm(self, offset: int, value: int) -> None:
        assert get(LocalApic(), offset) == value

    def test_the_version_is_an_integrated_apic_with_six_lvt_entries(self) -> None:
        assert get(LocalApic(), VERSION) & 0xFF in range(0x10, 0x16)
        assert get(LocalApic(), VERSION) >> 16 == 6 - 1

    def test_nothing_is_requested_and_nothing_is_due(self) -> None:
        apic = LocalApic()
        assert vectors(apic, IRR) == vectors(apic, ISR) == vectors(apic, TMR) == set()
        assert apic.pending_vector() is None
        assert apic.next_deadline_ns() is None

    def test_reset_equals_freshly_built(self, apic: LocalApic) -> None:
        start_timer(apic, 5, 0x40 | PERIODIC)
        apic.message(MSI, 0x50)
        put(apic, TPR, 0x33)
        apic.advance(100)
        assert apic != LocalApic()
        assert apic.reset().deadline
        assert apic == LocalApic()


class TestAccesses:
    @pytest.mark.parametrize(
        ("offset", "kept"),
        [
            (ID, 0xFF00_0000),
            (VERSION, 0),
            (TPR, 0xFF),
            (PPR, 0),
            (EOI, 0),
            (LDR, 0xFF00_0000),
            (ICR_HIGH, 0xFF00_0000),
            (LVT_TIMER, 0x0003_00FF),
            (LVT_THERMAL, 0x0001_07FF),
            (LVT_PERFORMANCE, 0x0001_07FF),
            (LVT_LINT0, 0x0001_A7FF),
            (LVT_LINT1, 0x0001_A7FF),
            (LVT_ERROR, 0x0001_00FF),
            (INITIAL_COUNT, 0xFFFF_FFFF),
            (DIVIDE, 0b1011),
        ],
    )
    def test_only_the_writable_bits_are_kept(self, apic: LocalApic, offset: int, kept: int) -> None:
        before = get(apic, offset)
        put(apic, offset, 0)
        zeros = get(apic, offset)
        put(apic, offset, 0xFFFF_FFFF)
        ones = get(apic, offset)
        assert zeros ^ ones == kept
        if not kept and offset not in (TPR, PPR):
            assert ones == before

    def test_the_dfr_keeps_its_model_and_reads_ones_below_it(self, apic: LocalApic) -> None:
        put(apic, DFR, 0)
        assert get(apic, DFR) == 0x0FFF_FFFF

    def test_the_bytes_behind_a_register_read_as_zero(self, apic: LocalApic) -> None:
        assert apic.read(DFR, 8, 0)[0] == 0xFFFF_FFFF
        assert [apic.read(DFR + 4 * i, 4, 0)[0] for i in (1, 2, 3)] == [0, 0, 0]

    def test_narrow_accesses_reach_the_bytes_of_a_register(self, apic: LocalApic) -> None:
        put(apic, LVT_TIMER, 0x0002_0040)
        assert [apic.read(LVT_TIMER + i, 1, 0)[0] for i in range(4)] == [0x40, 0, 2, 0]
        apic.write(LVT_TIMER + 2, 1, 1, 0)
        assert get(apic, LVT_TIMER) == 0x0001_0040

    def test_an_access_that_straddles_two_slots_reaches_both(self, apic: LocalApic) -> None:
        put(apic, TPR, 0x20)
        assert apic.read(TPR - 4, 8, 0)[0] == 0x20 << 32

    @pytest.mark.parametrize("offset", [0x0, 0x40, 0x90, 0xC0, 0x290, 0x2F0, 0x3A0, 0x3F0, 0x400, 0xFF0])
    def test_a_slot_without_a_register_reads_zero_and_is_logged(self, apic: LocalApic, offset: int) -> None:
        assert get(apic, offset) == 0
        put(apic, ESR, 0)
        assert get(apic, ESR) == 1 << 7
        put(apic, offset, 0xFFFF_FFFF)
        put(apic, ESR, 0)
        assert get(apic, ESR) == 1 << 7


class TestPriorities:
    def test_the_highest_requested_vector_is_pending(self, apic: LocalApic) -> None:
        for vector in (0x31, 0xA5, 0x72):
            apic.message(MSI, vector)
        assert vectors(apic, IRR) == {0x31, 0xA5, 0x72}
        assert apic.pending_vector() == 0xA5

    def test_acknowledging_moves_it_from_the_irr_to_the_isr(self, apic: LocalApic) -> None:
        apic.message(MSI, 0x72)
        assert apic.acknowledge() == 0x72
        assert vectors(apic, IRR) == set()
        assert vectors(apic, ISR) == {0x72}

    def test_the_same_class_waits_for_the_eoi_and_a_higher_class_does_not(self, apic: LocalApic) -> None:
        apic.message(MSI, 0x71)
        apic.acknowledge()
        apic.message(MSI, 0x7F)
        assert apic.pending_vector() is None
        apic.message(MSI, 0x80)
        assert apic.acknowledge() == 0x80
        put(apic, EOI, 0)
        assert vectors(apic, ISR) == {0x71}
        assert apic.pending_vector() is None
        put(apic, EOI, 0)
        assert apic.pending_vector() == 0x7F

    @pytest.mark.parametrize(("tpr", "pending"), [(0x00, 0x55), (0x4F, 0x55), (0x50, None), (0xF0, None)])
    def test_the_task_priority_holds_back_its_own_class_and_below(
        self, apic: LocalApic, tpr: int, pending: int | None
    ) -> None:
        put(apic, TPR, tpr)
        apic.message(MSI, 0x55)
        assert apic.pending_vector() == pending

    @pytest.mark.parametrize(("tpr", "in_service", "ppr"), [(0x25, 0x61, 0x60), (0x75, 0x61, 0x75), (0x13, None, 0x13)])
    def test_the_processor_priority_is_the_higher_class(
        self, apic: LocalApic, tpr: int, in_service: int | None, ppr: int
    ) -> None:
        if in_service is not None:
            apic.message(MSI, in_service)
            apic.acknowledge()
        put(apic, TPR, tpr)
        assert get(apic, PPR) == ppr

    def test_a_request_that_is_gone_gives_the_spurious_vector_and_no_service(self, apic: LocalApic) -> None:
        put(apic, SVR, 0x1EF)
        apic.message(MSI, 0x55)
        put(apic, TPR, 0x60)
        assert apic.acknowledge() == 0xEF
        assert vectors(apic, ISR) == set()
        assert vectors(apic, IRR) == {0x55}

    def test_an_eoi_with_nothing_in_service_does_nothing(self, apic: LocalApic) -> None:
        before = vars(apic).copy()
        put(apic, EOI, 0)
        assert vars(apic) == before


class TestMessages:
    def test_physical_destinations_match_the_id_or_broadcast(self, apic: LocalApic) -> None:
        put(apic, ID, 0x03 << 24)
        apic.message(MSI | 0x03 << 12, 0x41)
        apic.message(MSI | 0x04 << 12, 0x42)
        apic.message(MSI | 0xFF << 12, 0x43)
        assert vectors(apic, IRR) == {0x41, 0x43}

    def test_flat_logical_destinations_match_by_any_common_bit(self, apic: LocalApic) -> None:
        put(apic, LDR, 0b0000_0110 << 24)
        apic.message(MSI | 0b0001_0100 << 12 | 4, 0x41)
        apic.message(MSI | 0b1111_1001 << 12 | 4, 0x42)
        assert vectors(apic, IRR) == {0x41}

    def test_cluster_logical_destinations_match_within_the_cluster(self, apic: LocalApic) -> None:
        put(apic, DFR, 0)
        put(apic, LDR, 0x21 << 24)
        apic.message(MSI | 0x23 << 12 | 4, 0x41)
        apic.message(MSI | 0x22 << 12 | 4, 0x42)
        apic.message(MSI | 0x31 << 12 | 4, 0x43)
        apic.message(MSI | 0xFF << 12 | 4, 0x44)
        assert vectors(apic, IRR) == {0x41, 0x44}

    def test_lowest_priority_is_delivered_here(self, apic: LocalApic) -> None:
        apic.message(MSI | 1 << 3, 0x100 | 0x41)
        assert apic.pending_vector() == 0x41

    def test_the_trigger_mode_stands_in_the_tmr(self, apic: LocalApic) -> None:
        apic.message(MSI, 0xC000 | 0x41)
        apic.message(MSI, 0x42)
        assert vectors(apic, TMR) == {0x41}
        apic.message(MSI, 0x41)
        assert vectors(apic, TMR) == set()

    def test_a_deassertion_requests_nothing(self, apic: LocalApic) -> None:
        apic.message(MSI, 0x8000 | 0x41)
        assert vectors(apic, IRR) == set()

    @pytest.mark.parametrize("address", [0xFEDF_FFFC, 0xFEF0_0000, 0x1000, 1 << 40])
    def test_writes_elsewhere_are_no_interrupts(self, apic: LocalApic, address: int) -> None:
        assert apic.message(address, 0x41) is NOTHING
        assert vectors(apic, IRR) == set()

    @pytest.mark.parametrize("vector", [0, 15])
    def test_a_vector_below_16_is_an_error_and_no_request(self, apic: LocalApic, vector: int) -> None:
        apic.message(MSI, vector)
        assert vectors(apic, IRR) == set()
        assert get(apic, ESR) == 0
        put(apic, ESR, 0)
        assert get(apic, ESR) == 1 << 6
        put(apic, ESR, 0)
        assert get(apic, ESR) == 0

    def test_vector_16_is_the_first_legal_one(self, apic: LocalApic) -> None:
        apic.message(MSI, 16)
        assert apic.acknowledge() == 16

    @pytest.mark.parametrize(("mode", "name"), [(2, "SMI"), (4, "NMI"), (5, "INIT"), (6, "start-up"), (7, "ExtINT")])
    def test_what_cannot_be_delivered_is_said_and_dropped(self, apic: LocalApic, mode: int, name: str) -> None:
        effects = apic.message(MSI, mode << 8 | 0x41)
        assert [(event.source, event.kind) for event in effects.events] == [("lapic", "undeliverable-interrupt")]
        assert name in effects.events[0].text
        assert apic.pending_vector() is None


class TestSoftwareDisable:
    def test_after_reset_fixed_interrupts_are_not_accepted(self) -> None:
        apic = LocalApic()
        apic.message(MSI, 0x41)
        assert vectors(apic, IRR) == set()

    def test_requests_are_held_while_disabled(self, apic: LocalApic) -> None:
        apic.message(MSI, 0x41)
        put(apic, SVR, 0xFF)
        assert apic.pending_vector() is None
        assert vectors(apic, IRR) == {0x41}
        put(apic, SVR, 0x1FF)
        assert apic.pending_vector() == 0x41

    def test_disabling_masks_every_lvt_entry_and_keeps_them_masked(self, apic: LocalApic) -> None:
        put(apic, LVT_TIMER, 0x40)
        put(apic, SVR, 0xFF)
        put(apic, LVT_ERROR, 0x41)
        assert get(apic, LVT_TIMER) == MASKED | 0x40
        assert get(apic, LVT_ERROR) == MASKED | 0x41


class TestErrors:
    def test_an_error_raises_the_error_vector_once_until_the_esr_is_written(self, apic: LocalApic) -> None:
        put(apic, LVT_ERROR, 0xFE)
        apic.message(MSI, 3)
        assert apic.acknowledge() == 0xFE
        apic.message(MSI, 4)
        assert vectors(apic, IRR) == set()
        put(apic, ESR, 0)
        apic.message(MSI, 4)
        assert vectors(apic, IRR) == {0xFE}

    def test_an_illegal_error_vector_is_one_more_error_and_no_endless_loop(self, apic: LocalApic) -> None:
        put(apic, LVT_ERROR, 0x05)
        put(apic, ICR_LOW, 0x03)
        put(apic, ESR, 0)
        assert get(apic, ESR) == 1 << 5 | 1 << 6

    def test_a_timer_with_an_illegal_vector_is_an_error(self, apic: LocalApic) -> None:
        start_timer(apic, 100, 0x0F)
        apic.advance(100)
        put(apic, ESR, 0, 100)
        assert get(apic, ESR, 100) == 1 << 6


class TestInterruptCommand:
    @pytest.mark.parametrize(
        ("high", "low"),
        [
            (0, 0x0004_0041),  # shorthand self
            (0, 0x0008_0041),  # all including self
            (0x07 << 24, 0x0000_0041),  # physical, its own id
            (0xFF << 24, 0x0000_0041),  # broadcast
            (0x10 << 24, 0x0000_0841),  # logical, its own bit
            (0x10 << 24, 0x0000_0941),  # the same, lowest priority
        ],
    )
    def test_a_fixed_ipi_to_itself_arrives(self, apic: LocalApic, high: int, low: int) -> None:
        put(apic, ID, 0x07 << 24)
        put(apic, LDR, 0x10 << 24)
        put(apic, ICR_HIGH, high)
        put(apic, ICR_LOW, low)
        assert apic.pending_vector() == 0x41
        assert get(apic, ICR_LOW) == low  # and the delivery status is idle

    @pytest.mark.parametrize(
        ("high", "low"), [(0, 0x000C_0041), (0x05 << 24, 0x0041), (0, 0x000C_4500), (0, 0x0008_8500), (0, 0x0008_0641)]
    )
    def test_others_arbitration_and_start_up_concern_nobody_here(self, apic: LocalApic, high: int, low: int) -> None:
        put(apic, ICR_HIGH, high)
        assert put(apic, ICR_LOW, low) == NOTHING
        assert apic.pending_vector() is None

    def test_an_nmi_to_itself_is_said_and_dropped(self, apic: LocalApic) -> None:
        assert "NMI" in put(apic, ICR_LOW, 0x0004_4400).events[0].text

    def test_an_illegal_vector_is_not_sent(self, apic: LocalApic) -> None:
        put(apic, ICR_LOW, 0x0004_000F)
        put(apic, ESR, 0)
        assert get(apic, ESR) == 1 << 5


class TestTimer:
    def test_one_shot_counts_a_nanosecond_per_tick_and_fires_once(self, apic: LocalApic) -> None:
        start_timer(apic, 50_000, 0x40, now_ns=1_000)
        assert apic.next_deadline_ns() == 51_000
        assert get(apic, CURRENT_COUNT, 1_001) == 49_999
        assert apic.advance(50_999) is NOTHING
        assert apic.advance(51_000).deadline
        assert vectors(apic, IRR) == {0x40}
        assert get(apic, CURRENT_COUNT, 60_000) == 0
        assert apic.next_deadline_ns() is None

    @pytest.mark.parametrize(
        ("code", "divisor"),
        [(0b0000, 2), (0b0001, 4), (0b0010, 8), (0b0011, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1)],
    )
    def test_the_divide_configuration(self, apic: LocalApic, code: int, divisor: int) -> None:
        put(apic, DIVIDE, code)
        put(apic, LVT_TIMER, 0x40)
        put(apic, INITIAL_COUNT, 1000)
        assert apic.next_deadline_ns() == 1000 * divisor
        assert get(apic, CURRENT_COUNT, 10 * divisor) == 990
        assert get(apic, CURRENT_COUNT, 10 * divisor - 1) == 991

    def test_periodic_keeps_its_phase(self, apic: LocalApic) -> None:
        start_timer(apic, 20_000, 0x40 | PERIODIC, now_ns=5)
        for period in (1, 2, 3):
            assert apic.next_deadline_ns() == 5 + 20_000 * period
            apic.advance(5 + 20_000 * period + 7)  # a little late each time
            assert apic.acknowledge() == 0x40
            put(apic, EOI, 0, 5 + 20_000 * period + 7)

    def test_a_periodic_count_goes_from_the_initial_count_down_to_one_and_is_never_zero(self, apic: LocalApic) -> None:
        start_timer(apic, 20_000, 0x40 | PERIODIC, now_ns=5)
        moments = (5, 6, 5 + 19_999, 5 + 20_000, 5 + 20_001, 5 + 79_999, 5 + 80_000)
        assert [get(apic, CURRENT_COUNT, now_ns) for now_ns in moments] == [
            20_000,
            19_999,
            1,
            20_000,
            19_999,
            1,
            20_000,
        ]

    def test_a_jump_over_a_million_periods_is_one_interrupt(self, apic: LocalApic) -> None:
        start_timer(apic, 20_000, 0x40 | PERIODIC)
        apic.advance(20_000 * 1_000_000 + 3)
        assert apic.acknowledge() == 0x40
        assert apic.pending_vector() is None
        assert apic.next_deadline_ns() == 20_000 * 1_000_001

    @pytest.mark.parametrize("count", [1, 3, 999, 9_999])
    def test_short_periods_interrupt_no_more_often_than_the_minimum(self, apic: LocalApic, count: int) -> None:
        start_timer(apic, count, 0x40 | PERIODIC)
        now_ns, deadlines = 0, []
        for _ in range(5):
            deadline_ns = apic.next_deadline_ns()
            assert deadline_ns is not None and deadline_ns % count == 0
            deadlines.append(deadline_ns)
            now_ns = deadline_ns
            apic.advance(now_ns)
        gaps = {later - earlier for earlier, later in pairwise(deadlines)}
        assert len(gaps) == 1
        assert MIN_INTERVAL_NS <= gaps.pop() < MIN_INTERVAL_NS + count

    def test_a_masked_timer_counts_but_has_no_deadline_and_no_interrupt(self, apic: LocalApic) -> None:
        start_timer(apic, 20_000, 0x40 | PERIODIC | MASKED)
        assert apic.next_deadline_ns() is None
        assert get(apic, CURRENT_COUNT, 30_000) == 10_000
        assert vectors(apic, IRR) == set()
        put(apic, LVT_TIMER, 0x40 | PERIODIC, 30_000)
        assert apic.next_deadline_ns() == 40_000

    def test_an_expiry_is_not_lost_when_an_access_comes_first(self, apic: LocalApic) -> None:
        start_timer(apic, 20_000, 0x40)
        effects = put(apic, LVT_TIMER, 0x40 | MASKED, 20_001)
        assert effects.deadline
        assert vectors(apic, IRR) == {0x40}

    def test_changing_the_divisor_keeps_the_count(self, apic: LocalApic) -> None:
        start_timer(apic, 1000, 0x40)
        put(apic, DIVIDE, 0b0000, 400)
        assert get(apic, CURRENT_COUNT, 400) == 600
        assert apic.next_deadline_ns() == 400 + 2 * 600

    def test_after_a_change_of_the_divisor_whole_periods_follow_the_rest_of_the_first(self, apic: LocalApic) -> None:
        start_timer(apic, 20_000, 0x40 | PERIODIC)
        put(apic, DIVIDE, 0b0000, 5_000)
        assert apic.next_deadline_ns() == 5_000 + 2 * 15_000
        assert get(apic, CURRENT_COUNT, 35_000 + 2 * 1_000) == 19_000
        apic.advance(35_000)
        assert apic.next_deadline_ns() == 35_000 + 2 * 20_000

    @pytest.mark.parametrize(
        ("offset", "value"), [(LVT_TIMER, 0x40), (INITIAL_COUNT, 5), (DIVIDE, DIVIDE_BY_1), (SVR, 0xFF)]
    )
    def test_what_moves_the_deadline_says_so(self, apic: LocalApic, offset: int, value: int) -> None:
        assert put(apic, offset, value).deadline

    def test_changing_the_mode_keeps_the_count(self, apic: LocalApic) -> None:
        start_timer(apic, 20_000, 0x40 | PERIODIC)
        put(apic, LVT_TIMER, 0x40, 65_000)
        assert get(apic, CURRENT_COUNT, 65_000) == 15_000
        assert apic.next_deadline_ns() == 80_000
        apic.advance(80_000)
        assert apic.next_deadline_ns() is None
        put(apic, LVT_TIMER, 0x40 | PERIODIC, 90_000)  # what has expired stays stopped
        assert apic.next_deadline_ns() is None
        assert get(apic, CURRENT_COUNT, 95_000) == 0

    def test_an_initial_count_of_zero_stops_it(self, apic: LocalApic) -> None:
        start_timer(apic, 1000, 0x40 | PERIODIC)
        put(apic, INITIAL_COUNT, 0, 500)
        assert apic.next_deadline_ns() is None
        assert get(apic, CURRENT_COUNT, 700) == 0

    def test_tsc_deadline_mode_does_not_exist(self, apic: LocalApic) -> None:
        put(apic, LVT_TIMER, 1 << 18 | 0x40)
        assert get(apic, LVT_TIMER) == 0x40


accesses = st.tuples(
    st.sampled_from(["read", "write", "message", "advance", "acknowledge"]),
    st.one_of(st.integers(0, 0xFFF), st.sampled_from(range(0, 0x400, 0x10))),
    st.sampled_from([1, 2, 4, 8]),
    st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 0x3_FFFF)),
    st.one_of(st.integers(0, 100), st.integers(0, 2**40)),
)


@given(st.lists(accesses, max_size=40))
def test_no_sequence_of_accesses_breaks_it(sequence: list[tuple[str, int, int, int, int]]) -> None:
    apic, now_ns = LocalApic(), 0
    put(apic, SVR, 0x1FF)
    for kind, offset, size, value, step_ns in sequence:
        now_ns += step_ns
        value &= (1 << 8 * size) - 1
        if kind == "read":
            read, _ = apic.read(offset, size, now_ns)
            assert 0 <= read < 1 << 8 * size
        elif kind == "write":
            apic.write(offset, size, value, now_ns)
        elif kind == "message":
            apic.message(MSI | value & 0xFFFFC, offset)
        elif kind == "acknowledge":
            expected = apic.pending_vector()
            assert apic.acknowledge() == (apic.svr & 0xFF if expected is None else expected)
        else:
            apic.advance(now_ns)
            deadline_ns = apic.next_deadline_ns()
            assert deadline_ns is None or deadline_ns > now_ns
        assert not apic.irr & 0xFFFF and not apic.isr & 0xFFFF
        assert apic.irr < 1 << 256
        pending = apic.pending_vector()
        assert pending is None or pending >> 4 > get(apic, PPR, now_ns) >> 4
    apic.reset()
    assert apic == LocalApic()
