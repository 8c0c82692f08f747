"""The rules for one object."""

import pytest

from maskkit.data.rules import brief, sound_rle, stated_size, to_number


@pytest.mark.parametrize("counts", [[2**70, 1], [2**63 - 1, 2**63 - 1, 8], [-1, 7], [5], ["a"], [[6]]])
def test_run_lengths_of_impossible_numbers_are_refused(counts: list) -> None:
    with pytest.raises((ValueError, TypeError), match=r"run lengths|invalid literal"):
        sound_rle({"size": [2, 3], "counts": counts}, (2, 3))


def test_run_lengths_that_fit_are_compressed() -> None:
    assert sound_rle({"size": [2, 3], "counts": [2, 2, 2]}, (2, 3))["size"] == [2, 3]


def test_long_messages_lose_their_middle():
    assert brief("a short one") == "a short one"
    cut = brief("begin" + 5000 * "a" + "end")
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert len(cut) < 700


@pytest.mark.parametrize("height", [True, 0, -1, 2**31, "12", 1.5, None])
def test_sizes_that_no_image_has(height):
    assert stated_size(height, 16) is None
    assert stated_size(12, 16) == (12, 16)


@pytest.mark.parametrize("text", ["1_0", "one", "", "0x10"])
def test_texts_that_are_no_numbers(text: str) -> None:
    assert to_number("1e2", "the box") == 100
    with pytest.raises(ValueError, match="the box has a value that is no number"):
        to_number(text, "the box")
