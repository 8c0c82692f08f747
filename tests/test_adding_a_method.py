"""The code of docs/adding_a_method.md is run as it stands there."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from maskkit import zoo
from maskkit.models.base import LOSS_KEYS
from tests.models.conformance import Conformance

PAGE = Path(__file__).parents[1] / "docs" / "adding_a_method.md"
BLOCKS = re.findall(r"`(\S+\.py)`[^\n]*:\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def dots():
    """The model file and the card of the page, where the page puts them."""
    with pytest.MonkeyPatch.context() as patch:
        for path, code in BLOCKS:
            if path.startswith("src/"):
                name = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
                module = ModuleType(name)
                patch.setitem(sys.modules, name, module)
                exec(compile(code, path, "exec"), vars(module))
        patch.setitem(zoo.METHODS, "dots", "dots")
        yield
        zoo._load.cache_clear()


def test_the_page_has_a_model_a_card_and_a_test() -> None:
    assert [path for path, _ in BLOCKS] == [
        "src/maskkit/models/dots.py",
        "src/maskkit/zoo/dots.py",
        "tests/models/test_dots.py",
    ]
    compile(BLOCKS[2][1], BLOCKS[2][0], "exec")


class TestDots(Conformance):
    preset = "dots-mobilenetv2-256"
    overfit_seed = 47  # drawn images with one object per class at most, all that the method can find
    floor = 0.7  # AP; the masks are coarse, one cell in 8 x 8 pixels


def test_it_predicts() -> None:
    model, batch = TestDots.model().eval(), TestDots.batch([1, 2])
    raw = model(batch.images, batch.sizes)
    assert set(model.loss(raw, batch)) <= set(LOSS_KEYS)
    found = model.decode(raw, batch.metas, TestDots.categories)
    assert all(np.all(np.diff(p.instances.scores) <= 0) for p in found if p.instances is not None)
