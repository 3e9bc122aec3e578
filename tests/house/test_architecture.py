"""ARCHITECTURE.md tells the truth about paths and rooms."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from swarmd.state.raft.guards import Guard

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "swarmd"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()


def rows_of(heading: str) -> list[str]:
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def test_every_path_of_the_change_table_exists() -> None:
    rows = rows_of("To change X, edit Y")
    assert len(rows) >= 25
    missing = []
    for row in rows:
        paths = re.findall(r"`([^`]+)`", row.split("|")[2])
        for path in paths:
            if path == "config.py" and "room" in row:
                continue
            if not (SOURCE / path).exists() and not (ROOT / path).exists():
                missing.append(path)
        assert paths or "config.py" in row, f"no path in {row}"
    assert missing == []


def test_every_room_appears_and_every_named_room_exists() -> None:
    named = {
        match.rstrip("/").removesuffix(".py")
        for row in rows_of("Rooms")
        for match in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    rooms = {
        path.stem
        for path in SOURCE.iterdir()
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert named == rooms


def test_every_guard_is_listed_with_what_would_happen_without_it() -> None:
    section = TEXT.split("### Guards of the log\n", 1)[1].split("\n## ", 1)[0]
    listed = re.findall(r"(?m)^\| `([^`]+)` \| \S.+ \|$", section)
    assert listed == [guard.value for guard in Guard]


def test_every_file_of_tests_has_a_name_of_its_own() -> None:
    """Two of one name cannot be run together."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
