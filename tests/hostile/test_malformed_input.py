"""The inventory of malformed input: each kind, what the device does about it, and where that is tested.

A row names ring mistakes of the driver library (run against all queues, over every way to the device), requests of the
`hostile` guest (run on a whole machine), and tests.  The table is checked both ways: what it names exists, and no
mistake and no wrong request is without a row.
"""

from __future__ import annotations

import ast
from typing import NamedTuple

import pytest

from tests.guests.test_hostile import PAYLOAD_ERRORS, RING_ERRORS
from tests.layers import ROOT, tree
from vmm.testing.mistakes import RING_MISTAKES
from vmm.testing.packed_mistakes import PACKED_MISTAKES

MISTAKES = [mistake.name for mistake in (*RING_MISTAKES, *PACKED_MISTAKES)]


class Row(NamedTuple):
    """One kind of malformed input.  `answer` is "reset" (the device needs one, and says why), "skipped" (counted,
    reported, and the request is completed) or "served" (nothing is wrong with it, though some devices think so)."""

    what: str
    answer: str
    mistakes: str = ""
    requests: str = ""
    tests: str = ""


TABLE = (
    Row(
        "what a broken ring costs",
        "reset",
        tests="""
            hostile/test_ring_mistakes.py::test_a_mistake_costs_the_driver_its_device_and_nothing_else
            hostile/test_ring_mistakes.py::test_a_mistake_behind_good_chains_loses_no_head_silently
            hostile/test_packed_mistakes.py::test_a_mistake_costs_the_driver_its_device_and_nothing_else
            hostile/test_packed_mistakes.py::test_a_mistake_behind_good_chains_loses_none_silently
            spec/test_status_and_features.py::test_2_1_2_needs_reset_comes_with_a_configuration_notification
            guests/test_hostile.py::test_a_broken_ring_is_explained_with_its_queue_head_and_section""",
    ),
    Row(
        "available index further ahead than the queue is long, or taken back",
        "reset",
        "available_index_jumps available_index_goes_back available_index_half_way_round",
        "avail-jump avail-back",
        "hostile/test_regressions.py::test_regression_more_requests_than_the_queue_has",
    ),
    Row(
        "head or next out of range",
        "reset",
        "head_out_of_range head_far_out_of_range next_out_of_range next_out_of_table",
        "head-range next-range indirect-range",
    ),
    Row(
        "loop, or a chain longer than the queue",
        "reset",
        "chain_of_one_that_loops chain_that_loops table_that_loops chain_longer_than_the_queue "
        "loop_over_the_whole_ring table_longer_than_the_queue",
        "loop",
        """
            hostile/test_regressions.py::test_regression_inflate_chain_that_never_ends
            hostile/test_bounded_work.py::test_a_loop_is_left_after_as_many_descriptors_as_the_queue_has""",
    ),
    Row(
        "head offered again while it is in flight",
        "reset",
        "same_head_twice buffer_id_twice",
        "head-twice",
        """
            hostile/test_regressions.py::test_regression_requests_without_end_while_one_is_held
            hostile/test_packed_mistakes.py::test_a_descriptor_that_the_device_holds_is_not_made_available_again
            hostile/test_packed_mistakes.py::test_a_buffer_id_that_the_device_holds_is_not_used_again""",
    ),
    Row(
        "indirect table not negotiated, nested, or of a bad length",
        "reset",
        "indirect_not_negotiated indirect_and_next table_in_table table_in_itself table_of_no_bytes "
        "table_of_one_and_a_half table_outside_ram table_of_4_gib packed_indirect_not_negotiated "
        "packed_indirect_and_next table_at_the_end_of_a_list packed_table_of_no_bytes packed_table_of_one_and_a_half "
        "packed_table_outside_ram packed_table_of_4_gib",
        "indirect-refused indirect-nested indirect-next indirect-empty indirect-odd indirect-outside",
        "hostile/test_regressions.py::test_regression_indirect_table_longer_than_the_queue",
    ),
    Row(
        "descriptor without a byte",
        "reset",
        "zero_length_descriptor packed_zero_length_descriptor zero_length_descriptor_in_a_list",
        "zero-length",
        "hostile/test_regressions.py::test_regression_zero_length_descriptor_loop",
    ),
    Row(
        "device-readable after device-writable",
        "reset",
        "readable_after_writable readable_after_writable_in_table readable_table_after_writable "
        "packed_readable_after_writable packed_readable_after_writable_in_table",
        "read-after-write",
    ),
    Row(
        "buffer outside RAM, past its end, around 2^64, or as long as 32 bits allow",
        "reset",
        "buffer_outside_ram buffer_half_outside_ram buffer_wraps_around_64_bits buffer_of_4_gib "
        "writable_buffer_outside_ram second_descriptor_outside_ram packed_buffer_outside_ram "
        "packed_buffer_half_outside_ram packed_buffer_wraps_around_64_bits packed_buffer_of_4_gib "
        "packed_writable_buffer_outside_ram packed_second_descriptor_outside_ram table_with_a_buffer_outside_ram",
        "outside-ram past-ram wrap huge",
        "hostile/test_regressions.py::test_regression_huge_descriptor_length",
    ),
    Row(
        "ring misaligned or outside RAM",
        "reset",
        requests="table-misaligned used-misaligned ring-outside ring-wrap",
        tests="""
            hostile/test_ring_mistakes.py::test_a_ring_that_is_misaligned_or_not_ram_needs_reset
            hostile/test_packed_mistakes.py::test_a_ring_that_is_misaligned_or_not_ram_needs_reset""",
    ),
    Row(
        "list in a packed ring that goes on where nothing is available",
        "reset",
        "list_that_goes_on_where_nothing_is_available list_that_goes_on_in_the_wrong_round",
    ),
    Row(
        "ring that is never empty",
        "served",
        tests="hostile/test_packed_mistakes.py::test_regression_a_ring_that_is_never_empty",
    ),
    Row(
        "page frame number outside RAM",
        "skipped",
        requests="pfn-outside",
        tests="""
            hostile/test_payload_mistakes.py::test_a_page_that_is_not_ram_is_skipped_counted_and_reported
            hostile/test_payload_mistakes.py::test_regression_pfn_shifted_in_32_bits
            hostile/test_payload_mistakes.py::test_regression_punching_past_the_end_of_a_region""",
    ),
    Row(
        "page array that is no multiple of 4 bytes",
        "skipped",
        requests="pfn-odd pfn-short",
        tests="""
            hostile/test_payload_mistakes.py::test_an_array_that_ends_within_an_entry_is_used_up_to_there
            hostile/test_payload_mistakes.py::test_an_odd_array_does_not_shift_those_of_other_requests""",
    ),
    Row(
        "page array longer than RAM has pages",
        "skipped",
        tests="""
            hostile/test_bounded_work.py::test_one_descriptor_of_all_ram_is_read_once_at_most
            hostile/test_bounded_work.py::test_a_descriptor_of_4_gib_of_real_ram_is_not_read_through
            devices/virtio/test_balloon.py::test_regression_a_4_gib_descriptor_is_not_read""",
    ),
    Row(
        "page array in many descriptors",
        "served",
        tests="""
            spec/test_split_ring.py::test_2_7_4_1_framing_does_not_matter
            spec/test_split_ring.py::test_2_7_5_2_a_chain_through_every_descriptor_of_the_queue_is_carried_out
            hostile/test_bounded_work.py::test_pieces_that_name_the_same_memory_over_and_over_are_not_all_read""",
    ),
    Row(
        "pages named twice, deflated without being in the balloon, or no page at all",
        "skipped",
        requests="pfn-twice deflate-stranger write-only",
        tests="""
            hostile/test_payload_mistakes.py::test_the_same_page_many_times_counts_once
            hostile/test_payload_mistakes.py::test_deflating_what_is_not_in_the_balloon_is_harmless
            hostile/test_payload_mistakes.py::test_a_request_with_no_readable_byte_is_completed""",
    ),
    Row(
        "statistics that are oversize, end within an entry, or come twice",
        "skipped",
        requests="stats-huge stats-odd stats-two",
        tests="""
            hostile/test_payload_mistakes.py::test_oversize_statistics_are_bounded_and_the_buffer_is_held_like_any_other
            hostile/test_payload_mistakes.py::test_statistics_that_end_within_an_entry_are_used_up_to_there
            hostile/test_payload_mistakes.py::test_regression_duplicate_stats_buffer_loses_no_head
            hostile/test_bounded_work.py::test_a_statistics_buffer_of_4_gib_is_not_read_through""",
    ),
    Row(
        "hint outside RAM, or any other broken ring, on free_page_vq",
        "reset",
        tests="hostile/test_hinting.py::test_a_mistake_costs_the_driver_its_device_and_nothing_else",
    ),
    Row(
        "command id of another size, stale, or none at all",
        "skipped",
        tests="""
            hostile/test_hinting.py::test_an_id_of_another_size_is_none_and_what_follows_belongs_to_nobody
            hostile/test_hinting.py::test_a_stop_of_another_size_ends_no_round
            hostile/test_hinting.py::test_an_id_of_4_gib_of_ram_is_not_read
            hostile/test_hinting.py::test_ids_and_stops_without_end_change_nothing
            spec/test_balloon_hinting.py::test_d8_pages_under_another_id_are_ignored
            spec/test_balloon_hinting.py::test_d8_a_stop_meant_for_an_older_id_does_not_end_the_new_round
            spec/test_balloon_hinting.py::test_d8_pages_without_an_id_or_after_stop_are_ignored""",
    ),
    Row(
        "hint while stopped or done, of a page in use, of the ring itself, of part of a page",
        "skipped",
        tests="""
            spec/test_balloon_hinting.py::test_d6_the_host_can_stop_a_round_and_hints_are_ignored_then
            spec/test_balloon_hinting.py::test_d9_a_page_written_since_the_id_keeps_its_contents
            spec/test_balloon_hinting.py::test_d10_a_hinted_page_is_left_alone_after_done
            spec/test_balloon_hinting.py::test_only_whole_pages_are_hints
            hostile/test_hinting.py::test_hinting_its_own_ring_hurts_only_the_driver
            hostile/test_hinting_model.py::no_page_is_lost""",
    ),
    Row(
        "queue that is not there, but would be with another numbering",
        "served",
        tests="spec/test_balloon_numbering.py::test_every_disagreement_is_noticed_and_no_agreement_is_complained_of",
    ),
)

EVERY_ROW = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.what)


@EVERY_ROW
def test_a_row_names_only_what_exists(row: Row) -> None:
    assert row.mistakes or row.requests or row.tests
    assert set(row.mistakes.split()) <= set(MISTAKES)
    assert set(row.requests.split()) <= {*RING_ERRORS, *PAYLOAD_ERRORS}
    for named in row.tests.split():
        path, _, name = named.partition("::")
        functions = {node.name for node in ast.walk(tree(ROOT / "tests" / path)) if isinstance(node, ast.FunctionDef)}
        assert name in functions, named


@EVERY_ROW
def test_the_guest_s_requests_are_answered_as_their_row_says(row: Row) -> None:
    """Its own test asserts a broken ring for the one kind and a completed request for the other."""
    expected = RING_ERRORS if row.answer == "reset" else PAYLOAD_ERRORS
    assert set(row.requests.split()) <= set(expected)
    assert row.answer == "reset" or not row.mistakes


def test_every_mistake_and_every_wrong_request_has_exactly_one_row() -> None:
    mistakes = [name for row in TABLE for name in row.mistakes.split()]
    requests = [name for row in TABLE for name in row.requests.split()]
    assert sorted(mistakes) == sorted(MISTAKES)
    assert sorted(requests) == sorted((*RING_ERRORS, *PAYLOAD_ERRORS))
