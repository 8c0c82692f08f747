"""Every method can be built without memory for its weights, which is how a file is compared with its description."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maskkit import zoo
from maskkit.checkpoints.listing import TensorInfo
from maskkit.checkpoints.outline import build, is_meta, outline
from maskkit.config import RunConfig
from maskkit.errors import DataError

SMALL = [
    next(p for p in m.presets if p.small or p is m.presets[-1])
    for m in {id(m): m for m in zoo.methods().values()}.values()
]


def config(preset, classes: int | None = None) -> RunConfig:
    classes = classes or preset.model.num_classes
    return RunConfig(preset.name, replace(preset.model, num_classes=classes), preset.input)


def described(state) -> dict[str, TensorInfo]:
    return {n: TensorInfo("F32" if t.is_floating_point() else "I64", tuple(t.shape)) for n, t in state.items()}


def outlined(preset) -> None:
    wanted = config(preset, 300)  # more than small presets are built at once for
    with torch.device("meta"):
        state = zoo.model_class(preset.name)(wanted.model).state_dict()
    assert is_meta(outline(wanted, described(state), Path("x")))


@pytest.mark.parametrize("preset", SMALL, ids=lambda p: p.name)
def test_every_method_has_an_outline(preset) -> None:
    outlined(preset)


@pytest.mark.slow
def test_every_preset_has_an_outline() -> None:
    different = {repr(config(preset, 300).model): preset for preset in zoo.presets()}
    for preset in different.values():
        outlined(preset)


def test_a_small_preset_is_built_at_once() -> None:
    preset = zoo.preset("condinst-mobilenetv2-320")
    made = build(config(preset, 3))
    assert not is_meta(outline(config(preset, 3), described(made.state_dict()), Path("x")))


def test_what_is_built_for_a_file_has_the_same_tables(tmp_path) -> None:
    """Weights come from the file; whatever else a model has is computed as always."""
    for name in ("instancefcn-mobilenetv2-256", "eva-tiny-256", "masklab-mobilenetv2-256"):
        preset = zoo.preset(name)
        plain, made = zoo.model_class(name)(preset.model), build(config(preset))
        assert [n for n, _ in plain.named_modules()] == [n for n, _ in made.named_modules()]
        stored = set(plain.state_dict())
        theirs = dict(made.named_buffers())
        for buffer, tensor in plain.named_buffers():
            assert buffer in stored or torch.equal(tensor, theirs[buffer]), buffer
        assert [p.requires_grad for p in plain.parameters()] == [p.requires_grad for p in made.parameters()]


def test_differences_are_listed(tmp_path) -> None:
    preset = zoo.preset("tinynet")
    state = described(zoo.model_class("tinynet")(preset.model).state_dict())
    wrong = {n: t for n, t in state.items() if n != "head.bias"} | {"more": TensorInfo("F32", (1,))}
    wrong["head.weight"] = TensorInfo("F32", (3, 8, 1, 1))
    with pytest.raises(DataError) as error:
        outline(config(preset), wrong, tmp_path / "m.safetensors")
    line = str(error.value)
    assert line.startswith(f"{tmp_path / 'm.safetensors'}: its tensors do not fit its own description: ")
    assert all(
        words in line
        for words in (
            "'head.weight' has shape [3, 8, 1, 1] and not [3, 8, 3, 3]",
            "there is no 'head.bias'",
            "'more' has no place",
        )
    )
