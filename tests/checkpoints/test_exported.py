"""The description of an exported file is data: any value of any field is taken rightly or ends in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from maskkit import zoo
from maskkit.checkpoints.exported import ExportedAs, exported_as, read_description
from maskkit.checkpoints.header import make_header
from maskkit.config import RunConfig, to_dict
from maskkit.errors import DataError
from tests.data.written import spoil
from tests.fuzz import VALUES

PATH = Path("model.onnx")
GOOD = ExportedAs(
    task="instance",
    format="onnx",
    size=(64, 96),
    batch=None,
    inputs=("images", "sizes"),
    outputs=("boxes", "scores"),
    same={"mask_scores": "scores"},
    precision="fp32",
    weights="0" * 64,
    checked={"before": None},
)


def description(export: Any) -> str:
    preset = zoo.preset("fcos-mobilenetv2-256")
    model = zoo.model_class(preset.name)(preset.model)  # type: ignore[call-arg]
    header = make_header(RunConfig(preset.name, preset.model, preset.input), preset.classes, model.decoder, {})
    return json.dumps(header | {"export": export})


def test_what_was_written_is_read() -> None:
    found = read_description(PATH, description(to_dict(GOOD)))
    assert exported_as(found, PATH) == GOOD


def test_a_file_without_it_is_refused() -> None:
    with pytest.raises(DataError, match="has no description of maskkit"):
        read_description(PATH, None)
    with pytest.raises(DataError, match="does not say how it was exported"):
        read_description(PATH, description({"task": "instance"}))


@pytest.mark.parametrize("field", to_dict(GOOD))
def test_any_value_of_a_field_is_right_or_refused(field: str) -> None:
    for value in VALUES:
        part = spoil(to_dict(GOOD), (field,), value)
        try:
            found = exported_as({"export": part}, PATH)
        except DataError:
            continue
        assert found.size is None or all(type(side) is int and side > 0 for side in found.size)
        assert found.batch is None or (type(found.batch) is int and found.batch > 0)
        assert all(type(name) is str for name in (*found.inputs, *found.outputs, *found.same.values()))


def test_names_fit() -> None:
    for wrong in ({"inputs": ["sizes"]}, {"outputs": ["boxes"]}):
        with pytest.raises(DataError, match="inputs and outputs that do not fit"):
            exported_as({"export": to_dict(GOOD) | wrong}, PATH)
