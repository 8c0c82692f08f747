"""What a runner takes of a case: its manifest alone says which values are stored."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.parity.goldens import Case


def _case(folder: Path, stored: np.ndarray, **described: Any) -> Case:
    (folder / "manifest.json").write_text(json.dumps({"outputs": {"labels": {"shape": [3, 7], **described}}}))
    save_file({"labels": stored}, folder / "outputs.safetensors")
    return Case(folder)


@pytest.mark.parametrize("stride", [None, 1, 2, 5, 11])
def test_a_case_is_stored_whole_or_at_any_stride(tmp_path: Path, stride: int | None) -> None:
    labels = np.arange(21, dtype=np.int32).reshape(3, 7)
    given = {} if stride is None else {"stride": stride}
    stored = labels if stride is None else labels.reshape(-1)[::stride].copy()
    case = _case(tmp_path, stored, absmax=20, **given)
    for ours in (labels, torch.from_numpy(labels)):
        assert np.array_equal(case.part("labels", ours), case.stored("labels").reshape(-1))
    case.compare("labels", labels, 0, 0)
    with pytest.raises(AssertionError):
        case.compare("labels", labels + 1, 0, 0)


@pytest.mark.parametrize(
    ("meaning", "taken"),
    [
        ("final binary masks[:, 3::7, 5::7]", np.s_[:, 3::7, 5::7]),
        ("masks of score > 0.1[:, ::2]", np.s_[:, ::2]),
        ("final binary masks", np.s_[:]),
    ],
)
def test_slices_are_those_of_the_manifest(tmp_path: Path, meaning: str, taken: Any) -> None:
    masks = np.random.default_rng(0).random((2, 20, 30))
    case = _case(tmp_path, masks[taken].copy(), meaning=meaning)
    assert np.array_equal(case.sample("labels", masks), masks[taken])


def test_weights_are_those_of_the_recipe(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[1] / "data" / "goldens" / "recipe.py"
    (tmp_path / "recipe.py").write_text(recipe.read_text(encoding="utf-8"), encoding="utf-8")
    shapes = {
        "conv.weight": [40, 64, 3, 3],  # of more than one piece
        "exactly.weight": [128, 128],
        "norm.weight": [64],
        "norm.running_var": [64],
        "norm.num_batches_tracked": [],
        "attention.in_proj_bias": [3, 4],
    }
    dtypes = {"norm.num_batches_tracked": "int64"}
    described = [[name, shape, dtypes.get(name, "float32")] for name, shape in shapes.items()]
    (tmp_path / "case").mkdir()
    for seed, gains in ((3, None), (4, [["^conv", 0.5], ["weight", 2.0]])):
        case = _case(tmp_path / "case", np.zeros(21, np.int32), absmax=1)
        case.manifest.update(seed=seed, gains=gains, parameters=described)
        official = case.recipe.fill_state_dict(case.manifest)
        for _ in range(2):  # made, and kept
            ours = case.weights()
            assert list(ours) == list(shapes)
            for name, tensor in ours.items():
                assert tensor.numpy().dtype == official[name].dtype
                assert np.array_equal(tensor, official[name]), name


def test_runners_have_no_stride_of_their_own() -> None:
    """Beside ``[::2]`` for pairs of names and values: a case of another file may be stored whole."""
    for runner in Path(__file__).parent.rglob("*.py"):
        if runner.name not in (Path(__file__).name, "goldens.py"):
            assert not re.search(r"::\s*([3-9]|\d\d)", runner.read_text(encoding="utf-8")), runner.name
