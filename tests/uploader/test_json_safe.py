"""What clients send, made fit for JSON."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_uploader.util.json_safe import to_json_safe

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just("\ud800"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.binary(), inner),
)


@settings(max_examples=50)
@given(anything)
def test_whatever_was_sent_can_be_written_as_json_in_utf_8(value: object) -> None:
    text = json.dumps(to_json_safe(value), allow_nan=False, ensure_ascii=False).encode()
    assert to_json_safe(json.loads(text)) == json.loads(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, "x", None, True, 1.5]}, {"a": [1, "x", None, True, 1.5]}),
        (math.nan, None),
        (-math.inf, None),
        (b"x", None),
        ({1: "one"}, {"1": "one"}),
        ("\ud800x", "?x"),
        ([[[[[[[[[1]]]]]]]]], [[[[[[[[None]]]]]]]]),
        (2**64, 2**64),
    ],
)
def test_what_json_knows_stays_and_the_rest_is_null(value: object, expected: object) -> None:
    assert to_json_safe(value) == expected
