"""Ids of files: what is one id, what is not, and how it is kept."""

import json

from hypothesis import given
from hypothesis import strategies as st

from maskkit.data import ids
from maskkit.files import in_file_name


def test_what_is_one_id() -> None:
    assert ids.key(7) == ids.key(7.0) == ids.key("7") == 7
    assert ids.key("-3") == -3
    different = ["0001", "1_0", "1", "10", "١", " 1", "1 ", "-0", "1.0", "", "fr_a", "9" * 5000]
    assert len({ids.key(d) for d in different}) == len(different)
    assert [ids.key(v) for v in (None, True, [], {}, float("inf"), float("nan"), 0.5)] == [None] * 7
    assert ids.own("7") == "7"
    assert ids.own(7.0) == 7


@given(st.integers() | st.text() | st.floats())
def test_an_id_is_kept_as_it_was(value: object) -> None:
    own = ids.own(value)
    assert own is None or own == value
    assert ids.key(own) == ids.key(value)
    assert own is None or ids.key(json.loads(json.dumps(own))) == ids.key(own)


@given(st.integers() | st.text())
def test_file_names_of_ids_have_no_folder(value: int | str) -> None:
    name = in_file_name(value)
    assert len(name) < 5000
    assert not set(name) & set("/\\:\0\n")
