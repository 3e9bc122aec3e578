"""docs/membership.md accounts for every case of the suites that it names, by tests that exist."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "membership.md").read_text()
STORIES = ROOT / "tests" / "sim" / "stories"
SUITES = {"memberlist": 148, "serf": 135, "foca": 82, "chitchat": 119}

TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"(?m)^(?:async )?def (test_\w+)", path.read_text())
}


def suites() -> dict[str, list[tuple[list[str], str]]]:
    """The rows of each suite: which of its cases (with their file), and what is said of them."""
    found: dict[str, list[tuple[list[str], str]]] = {}
    for section in re.split(r"(?m)^### ", PAGE)[1:]:
        rows = found.setdefault(section.split(":", 1)[0], [])
        file = ""
        for line in section.splitlines():
            if not line.startswith("| "):
                continue
            names, said = (cell.strip() for cell in line.strip("|").split("|"))
            if said == "here":
                file = names
            else:
                rows.append(([f"{file} {name}" for name in re.findall(r"`(\w+)`", names)], said))
    return found


def test_every_case_is_listed_once() -> None:
    listed = {
        suite: [case for cases, _ in rows for case in cases] for suite, rows in suites().items()
    }
    assert {suite: len(cases) for suite, cases in listed.items()} == SUITES
    for suite, cases in listed.items():
        assert [case for case, times in Counter(cases).items() if times > 1] == []
        assert f"### {suite}: {SUITES[suite]} cases" in PAGE


def test_every_case_has_a_test_or_a_reason() -> None:
    for rows in suites().values():
        for cases, said in rows:
            left_out = said.startswith("left out: ") and len(said) > len("left out: ") + 5
            assert left_out or "`test_" in said, cases


def test_every_test_that_the_page_names_exists() -> None:
    promised = re.findall(r"`(test_\w+)`", PAGE.split("# Cases of other suites")[0])
    assert len(promised) >= 8
    held = [name for rows in suites().values() for _, said in rows for name in _names(said)]
    assert len(set(held)) >= 100
    assert sorted({*promised, *held} - TESTS) == []
    stories = re.findall(r"`(swim_\w+\.txt)`", PAGE)
    assert stories
    assert [name for name in stories if not (STORIES / name).exists()] == []


def _names(said: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", said)
