"""Shared by all tests: hypothesis settings, and the rule that CI skips nothing."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings
from postgres_server import PostgresServer, postgres_server

settings.register_profile("swarmd", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("swarmd")


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
