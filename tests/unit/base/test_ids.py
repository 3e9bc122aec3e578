from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import BadRequest
from swarmd.base.ids import digest, from_text, job_id_of, node_id_of, task_id_of, to_text


@given(st.binary(max_size=80))
def test_ids_survive_being_written_and_read(raw: bytes) -> None:
    assert from_text(to_text(raw)) == raw
    assert from_text(to_text(raw).upper()) == raw


@pytest.mark.parametrize("text", ["0", "abc1", "é", "a b"])
def test_text_that_is_no_id_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadRequest, match="is not an id"):
        from_text(text)


def test_a_digest_depends_on_where_parts_end() -> None:
    assert digest(b"ab", b"c") != digest(b"a", b"bc")


def test_one_key_names_one_task_per_swarm_and_no_job() -> None:
    assert task_id_of(b"s", "k") == task_id_of(b"s", "k")
    assert task_id_of(b"s", "k") != task_id_of(b"t", "k")
    assert task_id_of(b"s", "k") != job_id_of(b"s", "k")
    assert len(task_id_of(b"s", "k")) == 26


def test_a_node_id_is_the_hash_of_its_key() -> None:
    # BLAKE2b-256 of 32 zero bytes, from an independent implementation.
    assert node_id_of(bytes(32)).hex() == (
        "89eb0d6a8a691dae2cd15ed0369931ce0a949ecafa5c3f93f8121833646e15c3"
    )
