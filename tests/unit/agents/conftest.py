"""A supervisor with one agent, for any test of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from agenthouse import Open, house_in


@pytest.fixture
def house(tmp_path: Path) -> Open:
    return house_in(tmp_path)
