"""Where machines of these tests are found."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vmm.control.running import Place


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="vmm") as folder:  # a short path: a socket's has an end
        made = Place(Path(folder))
        yield made
        made.close()
