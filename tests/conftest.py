"""Shared by all tests: hypothesis settings, and the rule that CI skips nothing."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings
from postgres_server import PostgresServer, postgres_server

settings.register_profile("swarmd", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("swarmd")

TESTS: Final = Path(__file__).parent
# Tests in these folders wait more than they compute.
WAITING: Final = ("conformance", "e2e", "hosts", "security")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits comes first: of two processes one begins with that, the other with the rest."""
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in WAITING)


def pytest_collection_finish() -> None:
    """Thousands of tests are there to the end: no collection of garbage looks through them again.

    `scripts/run_fuzz.py` alone has two of each target, which took as long as all of its inputs.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skip is a failure: CI installs what tests need."""
    report = yield
    setattr(item, f"rep_{report.when}", report)
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL with pgvector, started with the first test that asks for it."""
    with postgres_server() as server:
        yield server
