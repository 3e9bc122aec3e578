"""Tags that a node tells of itself: their form, and that they fit beside all else."""

from __future__ import annotations

import pytest

from swarmd import __version__
from swarmd.base.errors import BadRequest, SwarmError, TooLarge
from swarmd.base.limits import NAME_BYTES_MAX
from swarmd.mesh.swim.messages import ADDRESSES_MAX, META_BYTES_MAX, TAGS_MAX, Meta, encode_meta
from swarmd.mesh.swim.tags import TAG_CHARS_MAX, TAGS_BYTES_MAX, checked_tags


def test_tags_are_told_in_order_of_their_keys() -> None:
    assert checked_tags({"rack": "a", "gpu-count": "2", "note": ""}) == (
        ("gpu-count", "2"),
        ("note", ""),
        ("rack", "a"),
    )


@pytest.mark.parametrize(
    ("tags", "kind", "says"),
    [
        ({f"k{n}": "" for n in range(TAGS_MAX + 1)}, BadRequest, "at most 16 tags"),
        ({"": "a"}, BadRequest, "'' is no key of a tag"),
        ({"a b": "a"}, BadRequest, "'a b' is no key of a tag"),
        ({"a.b": "a"}, BadRequest, "letters, digits, dashes"),
        ({"k" * (TAG_CHARS_MAX + 1): "a"}, BadRequest, "at most 64"),
        ({"rack": "a\x1b[2J"}, BadRequest, "the tag rack must have a value"),
        ({"rack": "a" * (TAG_CHARS_MAX + 1)}, BadRequest, "at most 64 printable"),
        ({"rack": "ä" * 64, "b": "x" * 3}, TooLarge, "the tags take 146 bytes"),
    ],
)
def test_what_is_no_tag_is_refused_with_a_reason(
    tags: dict[str, str], kind: type[SwarmError], says: str
) -> None:
    with pytest.raises(kind) as caught:
        checked_tags(tags)
    assert says in caught.value.message


def test_the_most_tags_fit_beside_the_longest_name_and_addresses() -> None:
    """Otherwise a change of addresses could not be told some day."""
    values = {f"{n:x}": "" for n in range(TAGS_MAX)}
    room = TAGS_BYTES_MAX - 6 * TAGS_MAX
    for tags in (
        checked_tags({**values, "f": "x" * room}),
        checked_tags({"k" * 33: "v" * 62, "l": "v" * 38}),
    ):
        meta = Meta(
            "n" * NAME_BYTES_MAX,
            tuple(("f" * 39, 65_535) for _ in range(ADDRESSES_MAX)),
            ("voter", "worker", "observer"),
            f"{__version__}.dev12345",
            tags,
            200,
            100,
        )
        assert len(encode_meta(meta)) <= META_BYTES_MAX
