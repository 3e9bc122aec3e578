"""The audit of dependencies: what pip-audit says is read for what it is."""

from __future__ import annotations

import audit
import pytest


def test_a_hole_fails_and_is_named() -> None:
    hole = {"id": "PYSEC-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
    found = {
        "dependencies": [
            {"name": "good", "version": "1.0", "vulns": []},
            {"name": "bad", "version": "1.0", "vulns": [hole]},
            {"name": "odd", "skip_reason": "not found"},
        ]
    }
    assert audit.judge(found) == (["bad 1.0: PYSEC-1, mended in 2.0"], 2, 1)


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ({}, 0, "nothing was audited"),
        ({"dependencies": [{"name": "odd", "skip_reason": "x"}]}, 0, "nothing was audited"),
        ({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, 0, "1 packages, 0 holes"),
        (
            {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X"}]}]},
            1,
            "1 packages, 1 holes",
        ),
    ],
)
def test_what_is_said_and_the_exit_code(
    found: dict[str, object],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "ask", lambda _: found)
    assert audit.main() == code
    assert said in capsys.readouterr().out
