"""API keys: their text, and what the swarm knows them by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.base.errors import Unauthenticated
from swarmd.identity.api_keys import KEY_TEXT_CHARS, api_key_hash, new_api_key


def test_a_key_is_known_by_its_hash() -> None:
    one, one_hash = new_api_key()
    other, other_hash = new_api_key()
    assert len(one) == KEY_TEXT_CHARS
    assert api_key_hash(one) == one_hash
    assert api_key_hash(other) == other_hash != one_hash


@given(place=st.integers(4, KEY_TEXT_CHARS - 1), letter=st.sampled_from("abcz27"))
def test_a_mistyped_key_is_told_from_a_refused_one(place: int, letter: str) -> None:
    text, _ = new_api_key()
    wrong = text[:place] + letter + text[place + 1 :]
    if wrong == text:
        return
    with pytest.raises(Unauthenticated, match="mistyped") as caught:
        api_key_hash(wrong)
    assert text[4:] not in caught.value.message


@given(st.text(max_size=200))
def test_other_text_is_no_key(text: str) -> None:
    with pytest.raises(Unauthenticated):
        api_key_hash(text)
    with pytest.raises(Unauthenticated):
        api_key_hash("swk_" + text)
