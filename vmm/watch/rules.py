"""What a balloon's driver may be held to (virtio 1.3), as data: one row a rule.

R1 to R42 are the driver's normative statements about the balloon (§5.5) in the order in which the specification has
them, permissions too, so that a reader finds each of them.  G1 to G6 are statements about every driver that a balloon
sees as well.  `unseen` says why no watcher outside the guest can tell whether a rule is kept; "" means that it is
watched.  The sentences are this project's own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Level = Literal["must", "should", "may"]


class Rule(NamedTuple):
    """`id` is short and stays the same, `section` is without the sign, `level` is the specification's word."""

    id: str
    section: str
    level: Level
    sentence: str
    unseen: str = ""

    @property
    def is_watched(self) -> bool:
        return not self.unseen


_PERMISSION = "a permission, which nobody can break"
_NO_TIME = "the specification gives no time for it"
_INSIDE = "what the driver thinks of a page's contents shows nowhere outside"

_FEATURES, _OPERATION, _STATS = "5.5.3.1", "5.5.6.1", "5.5.6.3.1"
_HINTS, _POISON, _REPORTS = "5.5.6.5.1", "5.5.6.6.1", "5.5.6.7.1"

_ROWS: Final = (
    Rule("R1", _FEATURES, "should", "VIRTIO_BALLOON_F_MUST_TELL_HOST is to be accepted where it is offered."),
    Rule(
        "R2",
        _FEATURES,
        "should",
        "PAGE_POISON is for drivers that fill deflated pages, and for no others.",
        _INSIDE,
    ),
    Rule("R3", _FEATURES, "must", "PAGE_REPORTING needs PAGE_POISON where free pages are to keep a value.", _INSIDE),
    Rule("R4", _OPERATION, "should", "Pages are to be supplied while num_pages is above what is there.", _NO_TIME),
    Rule("R5", _OPERATION, "may", "Pages may be taken back while num_pages is below what is there.", _PERMISSION),
    Rule("R6", _OPERATION, "may", "Pages may be supplied while num_pages is not below what is there.", _PERMISSION),
    Rule(
        "R7", _OPERATION, "must", "Without DEFLATE_ON_OOM nothing leaves the balloon that num_pages asks to be in it."
    ),
    Rule("R8", _OPERATION, "may", "With DEFLATE_ON_OOM pages may leave it when memory is short.", _PERMISSION),
    Rule("R9", _OPERATION, "must", "The deflateq tells which pages of the balloon are used again, and no others."),
    Rule("R10", _OPERATION, "must", "With MUST_TELL_HOST a page is not used before its deflation is acknowledged."),
    Rule("R11", _OPERATION, "may", "Without it a page may be used before that.", _PERMISSION),
    Rule("R12", _OPERATION, "must", "A page is not used before its inflation is acknowledged."),
    Rule("R13", _OPERATION, "must", "A page is not deflated before its inflation is acknowledged."),
    Rule("R14", _OPERATION, "must", "`actual` is updated after the number of pages in the balloon has changed."),
    Rule("R15", _OPERATION, "may", "It may be updated once after several requests.", _PERMISSION),
    Rule("R16", _STATS, "must", "There is at most one buffer in the statsq."),
    Rule("R17", _STATS, "must", "After initialisation a buffer is made available in the statsq."),
    Rule("R18", _STATS, "must", "When the statistics buffer was used another output buffer is made available."),
    Rule("R19", _STATS, "must", "A statistics buffer has one initialised entry for each statistic."),
    Rule("R20", _STATS, "must", "A statistics buffer is a whole number of entries long."),
    Rule("R21", _STATS, "may", "Statistics may come in any order.", _PERMISSION),
    Rule("R22", _STATS, "may", "Some of the statistics may be left out.", _PERMISSION),
    Rule("R23", _STATS, "must", "Every statistics buffer has the same set of statistics."),
    Rule("R24", _HINTS, "must", "Output buffers in the free_page_vq are 4 bytes long."),
    Rule("R25", _HINTS, "must", "Hints begin with an output buffer that holds the current command id."),
    Rule("R26", _HINTS, "must", "The current command id is sent once."),
    Rule("R27", _HINTS, "should", "Pages are to be hinted when the command id is 2 or more.", _NO_TIME),
    Rule("R28", _HINTS, "should", "No pages are to be hinted when the command id is STOP or DONE."),
    Rule("R29", _HINTS, "must", "A driver that has no more pages to hint sends STOP."),
    Rule("R30", _HINTS, "may", "Hinted pages may be used again at any time.", _PERMISSION),
    Rule("R31", _HINTS, "must", "Hinted pages are taken for uninitialised.", _INSIDE),
    Rule("R32", _HINTS, "must", "Hinted pages that are used before DONE are initialised.", _INSIDE),
    Rule("R33", _HINTS, "should", "All hinted pages are to be released after DONE.", _INSIDE),
    Rule(
        "R34",
        _POISON,
        "must",
        "Deflated pages are filled with poison_val when they are used again.",
        "the page has its next contents before anybody outside can look",
    ),
    Rule("R35", _POISON, "must", "poison_val is written before DRIVER_OK."),
    Rule("R36", _POISON, "must", "poison_val is not changed while DRIVER_OK is set."),
    Rule("R37", _REPORTS, "must", "Without PAGE_POISON reported pages are taken for uninitialised.", _INSIDE),
    Rule("R38", _REPORTS, "must", "With PAGE_POISON reported pages hold poison_val."),
    # A report is discarded and acknowledged in one go, while the guest stands still; only one that is worked off in
    # slices leaves a driver the time to break this.
    Rule("R39", _REPORTS, "must", "Reported pages are not used before the report is acknowledged."),
    Rule("R40", _REPORTS, "may", "Pages may be reported at any time after DRIVER_OK.", _PERMISSION),
    Rule("R41", _REPORTS, "should", "Large pages are to be reported rather than small ones.", "a driver may have none"),
    Rule("R42", _REPORTS, "should", "Reported pages are to be left alone unless they are needed.", _INSIDE),
    Rule("G1", "3.1.1", "must", "No queue is notified before DRIVER_OK."),
    Rule("G2", "2.9", "must", "A notification carries the data that NOTIFICATION_DATA asks for."),
    Rule("G3", "2.2.1", "must", "Only what is offered is accepted, with what it requires."),
    Rule("G4", "2.1.1", "must", "No bit of the device status is cleared."),
    Rule("G5", "3.1.1", "must", "The configuration space is not written before features are negotiated."),
    Rule("G6", "5.5.6.2.1", "must", "By the legacy interface `actual` is written whole, in one access."),
)

RULES: Final[Mapping[str, Rule]] = {rule.id: rule for rule in _ROWS}
"""Every rule by its id, in the order of the specification."""
