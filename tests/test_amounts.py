from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedunlearn.amounts import printable, tell_percent


@pytest.mark.parametrize(
    ("value", "told"), [(None, "not known"), (0.0, "0.00 %"), (91.256, "91.26 %"), (100, "100.00 %")]
)
def test_percents(value: float | None, told: str) -> None:
    assert tell_percent(value) == told


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "a\nb", "\N{RIGHT-TO-LEFT OVERRIDE}a", "\ud800"])
def test_what_moves_a_cursor_or_hides_a_word_is_replaced(text: str) -> None:
    assert printable(text).count("\N{REPLACEMENT CHARACTER}") == 1


@given(st.text())
def test_texts_keep_their_length_and_what_can_be_printed(text: str) -> None:
    told = printable(text)
    assert told.isprintable()
    assert len(told) == len(text)
    assert all(new in (old, "\N{REPLACEMENT CHARACTER}") for old, new in zip(text, told, strict=True))
    assert printable(told) == told
