"""Imported once by the process that those who fuzz are forked from, so that each need not."""

from __future__ import annotations

from fuzz_targets import targets

targets()
