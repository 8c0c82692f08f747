"""Exported files: what they say about themselves, what they refuse, other shapes, precisions, OpenVINO."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import maskkit
from maskkit import zoo
from maskkit.checkpoints.checkpoint import Checkpoint
from maskkit.cli import main
from maskkit.config import InputConfig, RunConfig, Tta, change
from maskkit.data.shapes import CATEGORIES, draw, shapes_dataset
from maskkit.decode.outputs import ClassLogits
from maskkit.errors import DataError, MaskkitError
from maskkit.export import write
from maskkit.export.check import Agreement, compare, differences, rows_agree
from maskkit.export.graph import Graph, trace
from maskkit.export.onnx import save, to_onnx, write_description
from maskkit.export.quantize import _depthwise, _fold_constants
from maskkit.export.unit_variance import unit_variance
from maskkit.export.write import ExportConfig, export
from maskkit.infer.runtimes import OnnxRuntime
from maskkit.infer.torch_runtime import PackageRuntime, predictor

SIZE = (96, 128)


def checkpoint_of(preset: str, **knobs: object) -> Checkpoint:
    """A small random model that finds objects."""
    torch.manual_seed(0)
    chosen = zoo.preset(preset)
    config = change(chosen.model, num_classes=len(CATEGORIES), **knobs)
    model = zoo.model_class(preset)(config)  # type: ignore[call-arg]
    pixels = torch.stack([draw(seed, SIZE, (3, 6))[0] for seed in (1, 2)]).float()
    unit_variance(model, (pixels - pixels.mean()) / pixels.std())
    return Checkpoint(model, RunConfig(preset, config, replace(chosen.input, size=SIZE)), CATEGORIES, {"step": 7})


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    return [draw(seed, (90, 110), (3, 6))[0].permute(1, 2, 0).numpy() for seed in (1, 2)]


@pytest.fixture(scope="module")
def fcos() -> Checkpoint:
    return checkpoint_of("fcos-mobilenetv2-256")


@pytest.fixture(scope="module")
def exported(
    fcos: Checkpoint, drawn: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Graph]]:
    """The file of `fcos`, and the graph that was traced for it."""
    graphs: list[Graph] = []

    def traced(*given: Any) -> Graph:
        graphs.append(plain(*given))
        return graphs[0]

    with pytest.MonkeyPatch.context() as patch:
        plain = write._trace
        patch.setattr(write, "_trace", traced)
        return export(fcos, tmp_path_factory.mktemp("export") / "fcos.onnx", images=drawn).path, graphs


@pytest.fixture(scope="module")
def file(exported: tuple[Path, list[Graph]]) -> Path:
    return exported[0]


@pytest.fixture
def traced_before(exported: tuple[Path, list[Graph]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Further exports of `fcos` take its graph as it is: making it takes most of the time."""
    path, (graph,) = exported

    def made_before(_: Graph, description: dict, names: tuple[str, ...]) -> onnx.ModelProto:
        model = onnx.load(path)
        write_description(model, description, names)
        return model

    monkeypatch.setattr(write, "_trace", lambda *_: graph)
    monkeypatch.setattr("maskkit.export.onnx.to_onnx", made_before)


def test_a_file_describes_itself(file: Path, fcos: Checkpoint) -> None:
    props = {p.key: p.value for p in onnx.load(file).metadata_props}
    description = json.loads(props["maskkit"])
    assert description["export"]["weights"] == write.fingerprint(fcos.model)
    assert description["export"]["checked"]["agreement"]["found"] > 0
    assert description["categories"]["names"] == list(CATEGORIES.names)
    assert description["config"]["preset"] == "fcos-mobilenetv2-256"
    assert "data" not in description["config"]
    assert json.loads(props["names"]) == {str(i): name for i, name in enumerate(CATEGORIES.names)}
    assert (props["task"], json.loads(props["imgsz"])) == ("detection", list(SIZE))

    segmenter = maskkit.load(file)
    assert (segmenter.categories, segmenter.task.name) == (CATEGORIES, "detection")
    assert segmenter.info["step"] == 7


def test_images_are_run_one_by_one_where_the_file_takes_one(file: Path, fcos: Checkpoint, drawn: list) -> None:
    ours = predictor(fcos.model, fcos.config.input, CATEGORIES, "cpu")
    theirs = replace(ours, runtime=OnnxRuntime(file))
    for batch in (1, 2):
        pairs = zip(ours.images(drawn, batch=batch), theirs.images(drawn, batch=batch), strict=True)
        assert all(rows_agree(a.to_coco(), b.to_coco()).share == 1 for a, b in pairs)


def test_several_images_at_a_time_give_the_same(file: Path, drawn: list) -> None:
    one, several = maskkit.load(file, threads=1), maskkit.load(file, threads=3, throughput=True)
    assert (one.predictor.streams, several.predictor.streams) == (1, 3)
    found, expected = ([p.to_coco() for p in s.predict_many(drawn * 3, 0)] for s in (several, one))
    assert found == expected
    assert sum(map(len, expected)) > 0


def test_weights_too_large_for_one_file_lie_beside_it(
    file: Path, drawn: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskkit.export.onnx.LARGEST", 1_000_000)
    apart = tmp_path / "apart.onnx"
    for _ in range(2):
        assert save(onnx.load(file), apart) == [tmp_path / "apart.data", apart]
    assert apart.stat().st_size < 1_000_000 < (tmp_path / "apart.data").stat().st_size < 1.1 * file.stat().st_size
    rows = [maskkit.load(f).predict(drawn[0], score=0.0).to_coco() for f in (file, apart)]
    assert rows[0] == rows[1]
    shutil.copy(tmp_path / "apart.data", tmp_path / "of_others.data")
    for name, left in (("apart", False), ("of_others", True)):  # a smaller model in place of the large one
        write._put([Path(shutil.copy(file, tmp_path / "new.onnx"))], tmp_path / f"{name}.onnx")
        assert (tmp_path / f"{name}.data").exists() == left
        assert maskkit.load(tmp_path / f"{name}.onnx").predict(drawn[0], score=0.0).to_coco() == rows[0]
    save(onnx.load(file), apart)
    (tmp_path / "apart.data").unlink()
    with pytest.raises(DataError, match=r"apart.onnx: its weights are missing: .*apart.data; copy both files"):
        maskkit.load(apart)


def test_threads_are_chosen_and_test_time_augmentation_is_refused(file: Path, drawn: list) -> None:
    segmenter = maskkit.load(file, threads=1)
    assert len(segmenter.predict(drawn[0], score=0.0)) > 0
    with pytest.raises(MaskkitError, match=r"test-time augmentation takes the checkpoint, not an exported"):
        segmenter.with_tta(Tta(flip=True))
    with pytest.raises(MaskkitError, match=r"tpu: this ONNX Runtime has .*CPU"):
        maskkit.load(file, device="tpu")


def test_an_image_of_another_size_is_refused(file: Path) -> None:
    with pytest.raises(MaskkitError, match=r"takes inputs of 96 x 128 .* not 64 x 64; export with --size"):
        OnnxRuntime(file).run(np.zeros((1, 3, 64, 64), np.float32), np.array([[64, 64]]))


def test_a_failure_is_told_once_with_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.zeros((1, 3, *SIZE), np.float32), np.array([SIZE])
    failures = [RuntimeError("no memory"), MaskkitError("the device is gone")]
    for error, told in zip(
        failures, [rf"{re.escape(str(file))}: fails for 1 .*\(no memory\)", "the device is gone"], strict=True
    ):
        monkeypatch.setattr(OnnxRuntime, "_infer", Mock(side_effect=error))
        with pytest.raises(MaskkitError, match=f"^{told}$"):
            OnnxRuntime(file).run(*given)


def test_a_graph_that_runtimes_read_differently_is_refused() -> None:
    class Smaller(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.interpolate(images, (8, 8), mode="bilinear", antialias=True)

    program = torch.export.export(Smaller(), (torch.zeros(1, 3, 16, 16),))
    graph = Graph(program, ("images",), ("logits",), {}, ())
    with pytest.raises(MaskkitError, match=r"antialiasing, which OpenVINO leaves out"):
        to_onnx(graph, {"export": {"task": "semantic", "size": None}}, ())


def test_a_varying_number_of_regions_does_not_fix_the_size() -> None:
    class Regions(torch.nn.Module):
        def forward(self, images: torch.Tensor, sizes: torch.Tensor | None) -> torch.Tensor:
            return images

        def select(self, raw: torch.Tensor) -> ClassLogits[torch.Tensor]:
            chosen = torch.nonzero(raw[0, 0, 0, :8] > 0)[:, 0]  # eight at most, whatever the size
            return ClassLogits(raw * torch.zeros(8).index_fill(0, chosen, 1.0).sum())

    given: Any = Regions()
    assert trace(given, torch.zeros(1, 3, 64, 96), ("size",)).dynamic == ("size",)


def test_files_of_other_programs_are_refused(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(DataError, match=r"foreign.onnx: has no description of maskkit"):
        maskkit.load(tmp_path / "foreign.onnx")
    model.metadata_props.add(key="maskkit", value="{")
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(DataError, match=r"damaged.onnx: its description is damaged"):
        maskkit.load(tmp_path / "damaged.onnx")
    (tmp_path / "text.onnx").write_text("no protobuf")
    with pytest.raises(DataError, match=r"text.onnx: ONNX Runtime cannot open it"):
        maskkit.load(tmp_path / "text.onnx")
    with pytest.raises(DataError, match=r"missing.onnx: there is no such file"):
        maskkit.load(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("a.tflite", ExportConfig(), r"suffix chooses the format; it is one of .onnx, .xml, .pt2"),
        ("a.onnx", ExportConfig(precision="bf16"), "bf16 is not for .onnx files; fp32 or int8 is"),
        ("a.xml", ExportConfig(precision="bf16"), "name the data on which this is measured"),
        ("a.onnx", ExportConfig(batch=0), "at least 1 image per call"),
        ("a.onnx", ExportConfig(size=(16, 64)), "too small"),
        ("a.onnx", ExportConfig(dynamic=("size",)), "pad by the size of the image"),
        ("a.onnx", ExportConfig(dynamic=("colour",)), "'colour' cannot be dynamic"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_exported_is_said_at_once(
    fcos: Checkpoint, tmp_path: Path, name: str, config: ExportConfig, reason: str
) -> None:
    with pytest.raises(MaskkitError, match=reason):
        export(fcos, tmp_path / name, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("traced_before")
def test_a_file_that_disagrees_is_not_written(
    fcos: Checkpoint, drawn: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "compare", lambda *_: Agreement(2, 10, 5, 5, 0.1))
    with pytest.raises(MaskkitError, match="not written, because it disagrees"):
        export(fcos, tmp_path / "a.onnx", images=drawn)
    assert not list(tmp_path.iterdir())
    assert export(fcos, tmp_path / "a.onnx", images=drawn, force=True).path.is_file()


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize(("after", "written"), [(0.4995, True), (None, False)])
def test_a_file_that_loses_accuracy_is_not_written(
    fcos: Checkpoint, tmp_path: Path, after: float | None, written: bool
) -> None:
    answers = iter([{"AP": 0.5, "AP50": 0.9}, {"AP": after, "AP50": 0.1}])
    given: dict = {"data": shapes_dataset(1, 0, SIZE), "measure": lambda *_: next(answers)}
    if written:
        assert export(fcos, tmp_path / "a.onnx", **given).after == {"AP": after, "AP50": 0.1}
    else:
        with pytest.raises(MaskkitError, match=r"not written, because AP falls from 0.500 to .* --force"):
            export(fcos, tmp_path / "a.onnx", **given)
        assert not list(tmp_path.iterdir())


def test_the_largest_difference_of_each_output_is_that_of_sure_rows_of_one_label() -> None:
    ours = {
        "labels": np.array([[1, 2, 3]]),
        "scores": np.array([[0.9, 0.5, 0.01]]),
        "boxes": np.zeros((1, 3, 4)),
        "logits": np.zeros((1, 5, 2, 2)),
    }
    theirs = {name: array + 0.25 for name, array in ours.items()} | {"labels": np.array([[1, 1, 3]])}
    theirs["boxes"] = np.array([[[0.5], [7], [7]]])
    assert differences(ours, theirs) == pytest.approx({"labels": 0, "scores": 0.25, "logits": 0.25})
    theirs["boxes"] = np.broadcast_to(theirs["boxes"], (1, 3, 4))
    assert differences(ours, theirs)["boxes"] == pytest.approx(0.5)


@pytest.mark.slow
def test_batch_and_size_can_be_left_open(drawn: list, tmp_path: Path) -> None:
    fcos = checkpoint_of("fcos-resnet50-1x", backbone={"name": "resnet18", "stride_in_1x1": False})
    done = export(fcos, tmp_path / "open.onnx", ExportConfig(dynamic=("batch", "size")), images=drawn)
    runtime = OnnxRuntime(done.path)
    ours = predictor(fcos.model, fcos.config.input, CATEGORIES, "cpu", fold=True).runtime
    for shape in ((1, 3, 64, 96), (3, 3, 128, 64)):
        noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        sizes = np.array([shape[2:]] * shape[0])
        a, b = ours.run(noise, sizes), runtime.run(noise, sizes)
        assert a["scores"].shape == b["scores"].shape
        assert np.allclose(a["scores"], b["scores"], atol=1e-4)


@pytest.mark.slow
def test_an_input_that_follows_the_image_becomes_a_fixed_one_and_what_that_changes_is_said(
    fcos: Checkpoint, drawn: list, tmp_path: Path
) -> None:
    follows = replace(fcos, config=replace(fcos.config, input=replace(fcos.config.input, resize="shorter")))
    done = export(follows, tmp_path / "fixed.onnx", images=drawn)
    assert done.resized is not None
    assert maskkit.load(done.path).input.resize == "pad"


def test_agreement_counts_both_sides() -> None:
    def row(x: float, score: float, label: int = 1) -> dict:
        return {"category_id": label, "bbox": [x, 0, 10, 10], "score": score}

    assert rows_agree([], []).share == 1
    near = rows_agree([row(0, 0.9)], [row(0.2, 0.8)])
    assert (near.objects, near.found, near.more, near.score) == (1, 1, 0, pytest.approx(0.1))
    assert rows_agree([row(0, 0.9)], [row(5, 0.9)]).share == 0
    assert rows_agree([row(0, 0.9)], [row(0, 0.9, 2)]).share == 0
    # one that only one of them has because its score is at the threshold
    assert rows_agree([row(0, 0.9), row(50, 0.3004)], [row(0, 0.9)], 0.3).share == 1


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param("condinst-mobilenetv2-256", marks=pytest.mark.slow),
        pytest.param("maskrcnn-mobilenetv2-256", marks=pytest.mark.slow),
        "deeplabv3plus-mobilenetv2-256",
    ],
)
def test_openvino_finds_the_same(preset: str, drawn: list, tmp_path: Path) -> None:
    # masks of random models are full of values near 0.5
    done = export(checkpoint_of(preset), tmp_path / "model.xml", images=drawn, force=True)
    assert done.agreement is not None
    assert done.agreement.share > 0.8
    assert done.agreement.objects > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    segmenter = maskkit.load(tmp_path / "model.xml")
    assert segmenter.predict(drawn[0]).meta.size == (90, 110)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(DataError, match=r"model.xml: its weights are missing"):
        maskkit.load(tmp_path / "model.xml")


@pytest.mark.slow
def test_a_compiled_package_says_what_was_checked(drawn: list, tmp_path: Path) -> None:
    chosen = zoo.preset("tinynet")
    torch.manual_seed(0)
    model = zoo.model_class("tinynet")(chosen.model)
    config = RunConfig("tinynet", chosen.model, chosen.input)
    given: dict = {"data": shapes_dataset(1, 0, SIZE), "measure": lambda *_: {"AP": 0.5}}
    checkpoint = Checkpoint(model, config, chosen.classes, {"step": 7})
    done = export(checkpoint, tmp_path / "tiny.pt2", images=drawn, force=True, **given)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.pt2"]
    segmenter = maskkit.load(done.path)
    assert isinstance(segmenter.runtime, PackageRuntime)
    checked = segmenter.runtime.exported.checked
    assert (checked["before"], checked["after"], checked["resized"]) == ({"AP": 0.5}, {"AP": 0.5}, None)
    assert done.agreement is not None
    assert checked["agreement"]["outputs"] == done.agreement.outputs
    assert checked["agreement"]["objects"] == done.agreement.objects > 0
    ours = predictor(model, chosen.input, chosen.classes, "cpu")
    assert compare(ours, segmenter.predictor, drawn).share > 0.8


def test_a_file_that_takes_no_other_shape_is_refused_by_the_name_that_was_given(tmp_path: Path) -> None:
    class Fixed:
        def run(self, *_: object) -> dict:
            raise MaskkitError(f"{tmp_path / '.x.tmp' / 'small.onnx'}: fails for 1 images of 96 x 128 (Concat)")

    given: Any = (None, Fixed(), InputConfig((64, 64)), ExportConfig(dynamic=("size",)))
    told = re.escape(
        f"{tmp_path / 'small.onnx'}: not written, because it fails for 1 images of 96 x 128 (Concat); leave"
    )
    with pytest.raises(MaskkitError, match=f"^{told} --dynamic out$"):
        write._try_other_shapes(tmp_path / "small.onnx", *given)


def test_casts_and_concatenations_of_constants_are_folded() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[4] x) => (float[4] y) <int64[2] c = {3, 4}>"
        "{ b = Cast<to = 6>(c)  d = Cast<to = 1>(b)  e = Concat<axis = 0>(d, d)"
        "  f = Concat<axis = 0>(x)  y = Add(f, e) }"
    )
    _fold_constants(graph)
    assert [node.op_type for node in graph.node] == ["Concat", "Add"]
    folded = next(constant for constant in graph.initializer if constant.name == "e")
    assert onnx.numpy_helper.to_array(folded).tolist() == [3.0, 4.0, 3.0, 4.0]
    assert folded.data_type == onnx.TensorProto.FLOAT


def test_depthwise_convolutions_are_told_from_others() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[1,4,8,8] x) => (float[1,4,8,8] y)"
        "<float[4,4,1,1] full = {0}, float[4,1,3,3] single = {0}, float[4,2,1,1] pair = {0}>"
        "{ a = Conv(x, full)  b = Conv<group = 4>(a, single)  c = Conv<group = 2>(b, pair)  y = Relu(c) }"
    )
    for node in graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    assert _depthwise(graph) == ["Conv_b"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small.onnx", "small.xml"])
def test_convolutions_in_eight_bits(fcos: Checkpoint, drawn: list, tmp_path: Path, name: str) -> None:
    data = shapes_dataset(50, 1, SIZE)
    given: dict = {"data": data, "calibration": data, "measure": lambda *_: {"AP": 0.5}}
    done = export(fcos, tmp_path / name, ExportConfig(precision="int8"), **given)
    assert (done.agreement, done.before, done.after) == (None, {"AP": 0.5}, {"AP": 0.5})
    small = maskkit.load(done.path).predictor
    assert small.runtime.exported.precision == "int8"  # type: ignore[attr-defined]
    found = compare(predictor(fcos.model, fcos.config.input, CATEGORIES, "cpu"), small, drawn, 0.05)
    assert found.found > 0.25 * found.objects > 0  # of a random model
    if done.path.suffix == ".onnx":
        graph = onnx.load(done.path).graph
        nodes, depthwise = graph.node, set(_depthwise(graph))
        made_by = {output: node for node in nodes for output in node.output}
        of_convolutions = {n.name: made_by[n.input[0]].op_type for n in nodes if n.op_type == "Conv"}
        assert len(depthwise) > 10
        assert "DequantizeLinear" not in [of_convolutions[name] for name in depthwise]
        others = [kind for name, kind in of_convolutions.items() if name not in depthwise]
        assert others.count("DequantizeLinear") > 0.9 * len(others)
        assert "DequantizeLinear" not in [made_by[i].op_type for n in nodes if n.op_type == "MatMul" for i in n.input]


def test_a_folder_without_images_is_not_replaced_by_those_of_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", "built-in", "--out", str(tmp_path / "x.onnx"), "--images", str(tmp_path)]) == 1
    assert f"{tmp_path}: contains no image" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_exports_predicts_and_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    photograph = sorted(write.DEMO_IMAGES.glob("*.jpg"))[0]
    with Image.open(photograph) as image:
        image.save(tmp_path / "images" / "a.png")
    model = str(tmp_path / "built-in.onnx")
    assert main(["export", "--model", "built-in", "--out", model, "--images", str(tmp_path / "images")]) == 0
    assert "objects in 2 images found again" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "images"), "--model", model, "--out", str(tmp_path / "found")]) == 0
    rows = json.loads((tmp_path / "found" / "predictions.json").read_text())
    expected = maskkit.load().predict(tmp_path / "images" / "a.png")
    assert rows_agree(expected.to_coco(), rows).share == 1
    assert compare(maskkit.load().predictor, maskkit.load(model).predictor, [photograph]).share == 1
