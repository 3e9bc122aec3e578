"""Values are taken out in whatever form they commonly take, and nothing else is."""

from __future__ import annotations

import base64
import io
import json
import sys
import urllib.parse
from typing import Any

import pytest

from swarmd.observe import log
from swarmd.observe.redaction import FORMS_MAX, Redactor

VALUE = 'pa$$ "w/o" r+d&=ü'


@pytest.mark.parametrize(
    "written",
    [
        VALUE,
        f"user:{VALUE}@host",
        json.dumps({"password": VALUE}),
        json.dumps({"password": VALUE}, ensure_ascii=False),
        repr([VALUE]),
        urllib.parse.quote(VALUE),
        urllib.parse.quote(VALUE, safe=""),
        urllib.parse.quote(VALUE, safe="").lower(),
        urllib.parse.urlencode({"p": VALUE}),
        VALUE.encode().hex(),
        VALUE.encode().hex().upper(),
        *(base64.b64encode(before + VALUE.encode() + b"end").decode()
          for before in (b"", b"u", b"us", b"use", b"user:")),
        base64.urlsafe_b64encode(VALUE.encode()).decode().rstrip("="),
    ],
)  # fmt: skip
def test_a_value_is_found_as_it_is_written(written: str) -> None:
    redactor = Redactor([("db", VALUE)])
    assert "[secret db]" in redactor.text(written)
    assert b"[secret db]" in redactor.raw(written.encode())
    rest = redactor.text(written)
    assert not [at for at in range(len(VALUE) - 7) if VALUE[at : at + 8] in rest]


def test_what_is_short_or_else_is_left_alone() -> None:
    redactor = Redactor([("pin", "1234567"), ("db", VALUE)])
    text = "1234567 and whatever else is said, pa$$ word"
    assert redactor.text(text) == text
    assert Redactor().text(text) == text
    assert Redactor().raw(b"") == b""


def digits(count: int) -> str:
    """Text that is nowhere like itself."""
    return "".join(f"{number:x}-" for number in range(count, 2 * count))[:count]


def test_lines_of_a_value_and_long_ones_are_found_in_pieces() -> None:
    lines = [digits(64), "short", digits(1_000), digits(300)]
    redactor = Redactor([("key", "\n".join(lines))])
    assert max(map(len, redactor.forms)) <= 256
    shown = redactor.text("here: " + "\n".join(lines)).replace("[secret key]", "")
    assert shown == "here: \n" + "short" + "\n\n"
    long = digits(1_000).replace("1-", "%\"'\\ü")
    for written in (long, json.dumps(long), repr(long), urllib.parse.quote(long)):
        rest = Redactor([("long", long)]).text(written).replace("[secret long]", "")
        assert rest in ("", '""', "''")
    encoded = base64.b64encode("\n".join(lines).encode()).decode()
    assert encoded[300:320] not in redactor.text(encoded)


def test_what_is_looked_for_is_bounded() -> None:
    many = [(f"s{n}", f"value number {n} " + "\n".join(f"line {n} {m}" for m in range(500)))
            for n in range(40)]  # fmt: skip
    redactor = Redactor([*many, ("db", VALUE)])
    assert len(redactor.forms) == FORMS_MAX
    assert redactor.text(VALUE) == "[secret db]"


def long_value(number: int) -> str:
    return "".join(f"{number}-{place}." for place in range(450))


def test_no_value_as_it_is_gives_way_to_another_as_it_may_be_written() -> None:
    values = [(f"s{number}", long_value(number)) for number in range(64)]
    redactor = Redactor(values)
    assert len(redactor.forms) == FORMS_MAX
    for name, value in values:
        assert redactor.text(value).replace(f"[secret {name}]", "") == ""


def test_all_is_found_wherever_it_is_and_however_many_there_are() -> None:
    """As by a search for one after the other."""
    values = [f"{number:x}~{digits(6 + number % 40)}" for number in range(16, 116)]
    redactor = Redactor([(str(number), value) for number, value in enumerate(values)])
    for before in range(12):
        for value in values:
            number = values.index(value)
            text = "." * before + value + "." + value + value
            shown = f"[secret {number}]"
            assert redactor.text(text) == "." * before + shown + "." + shown + shown
            assert redactor.raw(text.encode()).decode() == redactor.text(text)


def test_what_overlaps_is_taken_out_as_one() -> None:
    redactor = Redactor([("a", "abcdefgh1234"), ("b", "efgh12345678")])
    assert redactor.text("<abcdefgh12345678>") == "<[secret a]>"


def test_to_look_for_many_takes_no_longer_than_for_few() -> None:
    """Counted in looks at the text, as a clock is not to be relied on."""
    many = Redactor([(f"s{number}", long_value(number)) for number in range(64)])
    text = "".join(f"a line of {number} words and no secrets\n" for number in range(1_000))
    looks = 0

    class Counted(str):
        def startswith(self, *args: Any) -> bool:
            nonlocal looks
            looks += 1
            return super().startswith(*args)

    assert many.text(Counted(text)) == text
    assert looks <= len(text) // 100


def test_the_ends_of_what_was_cut_go_too() -> None:
    redactor = Redactor([("db", VALUE)])
    assert redactor.text("x" * 1_000 + VALUE[:9], end_cut=True).strip("x") == "..."
    assert redactor.text(VALUE[-9:] + "x" * 1_000, start_cut=True).strip("x") == "..."
    assert redactor.text("short " + VALUE) == "short [secret db]"
    assert redactor.text("short", end_cut=True) == "..."


@pytest.mark.parametrize("after", range(0, 300, 3))
def test_what_goes_of_a_cut_text_leaves_no_part_of_a_value(after: int) -> None:
    redactor = Redactor([("db", VALUE)])
    found = redactor.text("x" * 500 + VALUE + "y" * after, end_cut=True)
    found += redactor.text("y" * after + VALUE + "x" * 500, start_cut=True)
    assert not [at for at in range(len(VALUE) - 2) if VALUE[at : at + 3] in found]


def test_a_text_of_nothing_but_values_is_cut_in_bounded_time() -> None:
    redactor = Redactor([("a", "a" * 64), ("b", "a" * 63)])
    assert redactor.text("a" * 16_384, end_cut=True) == "[secret a]..."


def test_a_daemon_never_logs_what_it_was_told_to_hide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for as_json in (False, True):
        told = io.StringIO()
        monkeypatch.setattr(sys, "stderr", told)
        log.configure("debug", json=as_json, node="n1")
        log.hide("db", VALUE)
        logger = log.get_logger("test")
        logger.info("an event", value=VALUE)
        logger.error(f"event {VALUE}")
        try:
            raise ValueError(VALUE)
        except ValueError:
            logger.exception("failed")
        assert "w/o" not in told.getvalue()
        assert told.getvalue().count("[secret db]") >= 3
        error = ValueError(f"crash with {VALUE}")
        sys.excepthook(ValueError, error, None)
        assert "w/o" not in told.getvalue()
        assert "crash with [secret db]" in told.getvalue()


def test_as_many_are_hidden_as_are_bounded() -> None:
    hidden = log._Hidden()
    for number in range(log.HIDDEN_MAX + 10):
        hidden.add("n", f"value number {number}")
    assert len(hidden._names) == log.HIDDEN_MAX
    assert hidden.out_of("value number 73") == "[secret n]"
