"""How many examples the comparisons with the reference try.  `make test-long` sets VMM_EXAMPLES."""

from __future__ import annotations

import os

from hypothesis import settings

TIMES = int(os.environ.get("VMM_EXAMPLES", "1"))


def examples(count: int) -> settings:
    """So many examples, or that many times VMM_EXAMPLES."""
    return settings(max_examples=count * TIMES, deadline=None)
