"""What a person types about vectors, and what lines of a file may be."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest

from swarmd.base.limits import VECTOR_BATCH_BYTES_MAX, VECTOR_BATCH_CHANGES_MAX
from swarmd.cli.commands.vector import _elements, _entries, _filter
from swarmd.cli.common import BadInput
from swarmd.client.vectors import _batches


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["topic=news"], {"topic": "news"}),
        (["topic=NaN"], {"topic": "NaN"}),
        (["year=2020"], {"year": 2020}),
        (['year="2020"'], {"year": "2020"}),
        (["draft=true"], {"draft": True}),
        (["note=a=b"], {"note": "a=b"}),
        (["note=a>b"], {"note": "a>b"}),
        (["empty="], {"empty": ""}),
        (['lang=["de", "fr"]'], {"lang": ["de", "fr"]}),
        (["year>=2020", "year<2024.5"], {"year": {"gte": 2020, "lt": 2024.5}}),
        (["name>b", "name<=d", "x=1"], {"name": {"gt": "b", "lte": "d"}, "x": 1}),
    ],
)
def test_a_filter_is_what_it_says(given: list[str], wanted: dict[str, Any]) -> None:
    assert _filter(tuple(given)) == wanted


@pytest.mark.parametrize(
    "given", [["topic"], ["=x"], ["a=1", "a=2"], ["a=1", "a>2"], ["a>1", "a=2"], ["a>1", "a>2"]]
)
def test_a_filter_that_says_nothing_is_refused(given: list[str]) -> None:
    with pytest.raises(click.UsageError):
        _filter(tuple(given))


def test_an_element_that_is_no_float_is_left_for_the_daemon_to_refuse() -> None:
    assert _elements(f"[1, {10**400}]") == [1, 10**400]


def test_lines_come_as_entries() -> None:
    text = '{"vector": [1, 2.5]}\n\n{"id": 7, "text": "x", "payload": {"n": 1}}'
    assert [*_entries(io.StringIO(text), "f")] == [
        {"vector": [1, 2.5]},
        {"id": "7", "text": "x", "payload": {"n": 1}},
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("[1]", "an entry is an object"),
        ('{"id": "a"}', "either a vector or a text"),
        ('{"text": "a", "vector": [1]}', "either a vector or a text"),
        ('{"vector": "a"}', "a list of numbers"),
        ('{"vector": [true]}', "a list of numbers"),
        ('{"text": 3}', "a text is a string"),
        ('{"text": "a", "payload": []}', "a payload is an object"),
        ('{"text": "a", "topic": "x"}', "'topic' is no part of an entry"),
        ('{"text": "' + "x" * 1_100_000 + '"}', "at most"),
    ],
)
def test_a_line_that_is_none_is_named(line: str, why: str) -> None:
    with pytest.raises(BadInput, match=f"f, line 2: .*{why}"):
        [*_entries(io.StringIO('{"vector": [1]}\n' + line), "f")]


def test_requests_are_bounded_and_nothing_is_left_out() -> None:
    small = [{"id": str(n), "vector": [0.0]} for n in range(2_500)]
    batches = [*_batches(iter(small))]
    assert [len(one) for one in batches] == [VECTOR_BATCH_CHANGES_MAX] * 2 + [500]
    assert [entry["id"] for batch in batches for entry in batch] == [one["id"] for one in small]
    wide = [{"vector": bytes(16_384)} for _ in range(600)]
    sizes = [sum(len(one["vector"]) * 3 // 4 for one in batch) for batch in _batches(wide)]
    assert max(sizes) <= VECTOR_BATCH_BYTES_MAX
    assert len(sizes) == 3
    texts = [{"text": "x"} for _ in range(100)]
    assert [len(one) for one in _batches(texts)] == [64, 36]
    ids = {entry["id"] for batch in _batches(texts) for entry in batch}
    assert len(ids) == 100
