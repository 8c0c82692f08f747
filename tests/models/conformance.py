"""What every method must do. A method's test subclasses `Conformance` and says which small model to try.

The model must be cheap: a small input, few channels, the classes of the drawn data.
"""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

import maskkit
from maskkit import zoo
from maskkit.checkpoints.checkpoint import Checkpoint, load_model, save_model
from maskkit.config import BackboneModelConfig, InputConfig, ModelConfig, RunConfig, change
from maskkit.data import open_dataset, shapes
from maskkit.data.dataset import Dataset
from maskkit.data.loader import collate
from maskkit.data.shapes import CATEGORIES, draw, shapes_dataset
from maskkit.data.transforms import apply, eval_ops
from maskkit.decode import from_dict, to_dict
from maskkit.errors import MaskkitError
from maskkit.eval.instance.metric import CocoResult
from maskkit.eval.task import TASKS, Task
from maskkit.export.openvino import to_openvino
from maskkit.export.unit_variance import unit_variance
from maskkit.export.write import ExportConfig, export
from maskkit.infer.runtimes import OnnxRuntime, OpenVinoRuntime, Runtime
from maskkit.infer.torch_runtime import TorchRuntime
from maskkit.infer.track import Tracker
from maskkit.models.base import LOSS_KEYS, Model
from maskkit.prediction import Categories, ImageMeta
from maskkit.targets import Batch, Target
from tests.export.without_torch import rows_without_torch
from tests.thorough import THOROUGH


class Conformance:
    """One instance-segmentation method under the tests that all share."""

    preset: ClassVar[str]
    categories: ClassVar[Categories] = CATEGORIES
    knobs: ClassVar[dict[str, Any]] = {}
    """Changes of the preset's model config that make it small."""
    size: ClassVar[tuple[int, int]] = (128, 128)
    overfit: ClassVar[dict[str, Any]] = {"steps": 160, "lr": 3e-3, "size": (320, 320)}
    """Masks on a grid of a quarter of the input reach an IoU of 0.95 only for objects that are large on it."""
    overfit_seed: ClassVar[int] = 40
    """Seed of the two images that are overfitted."""
    floor: ClassVar[float] = 0.9
    """What `agreement` has to exceed then."""
    near: ClassVar[float] = 0.99
    """Share of the values that exported files and PyTorch have to agree on."""
    variant: ClassVar[bool] = False
    """Whether the method has a nearer relative in these tests; its slow ones run where thorough."""
    no_openvino: ClassVar[str] = ""
    """Why OpenVINO cannot run an exported file, if it cannot."""

    @classmethod
    def model_config(cls, **knobs: Any) -> ModelConfig:
        # weights are random here: layers and norms that a pretrained backbone may keep as they are have to learn
        config = change(zoo.preset(cls.preset).model, num_classes=len(cls.categories))
        if isinstance(config, BackboneModelConfig):
            config = change(config, backbone={"norm": "train", "frozen_stride": 0})
        return change(change(config, **cls.knobs), **knobs)

    @classmethod
    def model(cls, **knobs: Any) -> Model:
        torch.manual_seed(0)
        return zoo.model_class(cls.preset)(cls.model_config(**knobs))  # type: ignore[call-arg]

    @classmethod
    def input(cls) -> InputConfig:
        return replace(zoo.preset(cls.preset).input, size=cls.size)

    @classmethod
    def batch(cls, seeds: list[int], objects: tuple[int, int] = (2, 5), **options: Any) -> Batch:
        samples = []
        for seed in seeds:
            image, target = draw(seed, cls.size, objects, **options)
            meta = ImageMeta(seed, "", cls.size, cls.size)
            samples.append(apply(eval_ops(cls.input()), (image, target, meta), np.random.default_rng(0)))
        return collate(samples, cls.input())

    def cases(self) -> dict[str, Batch]:
        crowd_only = self.batch([5], (0, 0), crowd=True)
        box_only = self.batch([6, 7], box_only=1.0)
        unknown = self.batch([8])
        unknown.targets = [
            replace(t, masks=None, has_mask=torch.zeros(len(t), dtype=torch.bool)) for t in unknown.targets
        ]
        return {
            "none": self.batch([0, 1], (0, 0)),
            "one": self.batch([2], (1, 1)),
            "many": self.batch([3, 4], (8, 12)),
            "some and none": collate_two(self.batch([3], (3, 5)), self.batch([0], (0, 0))),
            "crowd only": crowd_only,
            "box only": box_only,
            "masks not given": unknown,
        }

    def test_shapes_of_what_is_selected(self) -> None:
        model = self.model().eval()
        batch = self.batch([1, 2])
        with torch.no_grad():
            chosen = model.select(model(batch.images))
        assert all(len(field) == 2 and field.isfinite().all() for field in chosen)
        if "scores" not in chosen._fields:
            return  # maps
        b, k = chosen.scores.shape
        assert chosen.boxes.shape == (b, k, 4)
        assert all(field.shape[:2] == (b, k) for field in chosen)
        assert chosen.labels.dtype == torch.int64
        assert 0 <= int(chosen.labels.min()) <= int(chosen.labels.max()) < len(CATEGORIES)
        if getattr(model.decoder, "threshold", 0.5):  # of probabilities; that of logits is 0
            assert all(0 <= float(masks.min()) <= float(masks.max()) <= 1 for masks in mask_fields(chosen))
        assert (chosen.scores.diff(dim=1) <= 0).all(), "best first"

    def test_the_decoder_reads_what_is_selected_and_travels_as_plain_types(self) -> None:
        model = self.model().eval()
        with torch.no_grad():
            chosen = model.select(model(self.batch([1]).images))
        assert isinstance(chosen, model.decoder.outputs)
        assert from_dict(to_dict(model.decoder)) == model.decoder
        assert from_dict(json.loads(json.dumps(to_dict(model.decoder)))) == model.decoder

    def test_masks_in_given_boxes(self) -> None:
        """For the box of the best detection the mask is that of the detection, for two boxes the second is numbered."""
        if not zoo.model_class(self.preset).draws_in_boxes:
            pytest.skip("this method draws no masks in given boxes")
        model = self.model(detector={"detections": 1}).eval()
        with torch.no_grad():
            raw = model(self.batch([1]).images)
            best = model.select(raw)
            boxes = torch.cat([best.boxes, torch.tensor([[[0.25, 0.25, 0.75, 0.5]]])], 1)
            drawn = model.select_in(raw, boxes)
        assert torch.allclose(drawn.masks[:, :1], best.masks, atol=1e-4)
        assert torch.equal(drawn.boxes, boxes)
        assert drawn.labels.tolist() == [[0, 1]]
        assert drawn.scores.tolist() == [[1, 1]]
        assert ((drawn.mask_scores >= 0) & (drawn.mask_scores <= 1)).all()

    def test_loss_is_finite_whatever_the_labels(self) -> None:
        model = self.model().train()
        names = None
        for name, batch in self.cases().items():
            losses = model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch)
            names = names or set(losses)
            assert set(losses) == names, f"{name}: the terms change with the labels"
            assert {term.partition("/")[0] for term in losses} <= set(LOSS_KEYS)
            for term, value in losses.items():
                assert value.shape == (), (name, term)
                assert value.dtype == torch.float32, (name, term)
                assert math.isfinite(value.item()), (name, term)
            model.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # the graph is there even for empty images
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), name

    def test_boxes_alone_teach_masks(self) -> None:
        """A method for boxes has the terms of `maskkit.nn.losses`; one for masks too, only where none is known."""
        model = self.model().train()
        if "boxes" not in model.supervision or "instance" not in model.tasks:
            pytest.skip("this method learns no masks from boxes")
        masks_too = "masks" in model.supervision
        for batch, boxed in ((self.batch([3, 4]), not masks_too), (self.batch([3, 4], box_only=1.0), True)):
            losses = model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch)
            model.zero_grad()
            (losses["mask/projection"] + losses["mask/pairwise"]).backward()
            assert (losses["mask/projection"].item() > 0) == boxed
            assert any(p.grad is not None and p.grad.any() for p in model.parameters()) == boxed

    def test_gradient_reaches_every_parameter(self) -> None:
        model = self.model().train()
        for p in model.parameters():  # a layer that starts at zero passes no gradient on before it has moved
            if not p.any():
                torch.nn.init.normal_(p, std=0.05)
        batch = self.batch([3, 4, 9, 10], (5, 10))
        batch.targets[0] = with_large_object(batch.targets[0], self.size)
        torch.stack(
            list(model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch).values())
        ).sum().backward()
        still = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not still, still

    def test_raw_is_the_same_type_in_training_and_evaluation(self) -> None:
        model = self.model()
        images = self.batch([1, 2]).images
        with torch.no_grad():
            trained, evaluated = model.train()(images), model.eval()(images)
        assert type(trained) is type(evaluated)
        assert [t.shape for t in tensors(trained)] == [t.shape for t in tensors(evaluated)]

    def test_a_image_gives_the_same_alone_and_in_a_batch(self) -> None:
        model = self.model().eval()
        batch = self.batch([1, 2, 3])
        with torch.no_grad():
            together = model.select(model(batch.images))
            for i in range(len(batch)):
                alone = model.select(model(batch.images[i : i + 1]))
                if "scores" not in alone._fields:
                    for a, b in zip(alone, together, strict=True):
                        assert torch.allclose(a[0].float(), b[i].float(), atol=1e-3)
                    continue
                assert torch.allclose(alone.scores[0], together.scores[i], atol=1e-5)
                # what scores alike may change places; compare where the order is certain
                sure = distinct(together.scores[i])
                assert torch.allclose(alone.boxes[0][sure], together.boxes[i][sure], atol=1e-4)
                for a, b in zip(mask_fields(alone), mask_fields(together), strict=True):
                    assert torch.allclose(a[0][sure], b[i][sure], atol=1e-3)

    def test_checkpoint_round_trip(self, tmp_path: Path) -> None:
        model = self.model().eval()
        images = self.batch([1]).images
        config = RunConfig(self.preset, self.model_config(), self.input())
        save_model(tmp_path / "model.safetensors", model, config, self.categories, {"note": "test"})
        again = load_model(tmp_path / "model.safetensors")
        assert again.config == config
        assert again.categories == self.categories
        with torch.no_grad():
            for a, b in zip(tensors(model(images)), tensors(again.model.eval()(images)), strict=True):
                assert torch.equal(a, b)

    def test_bf16_loss_is_near_fp32(self) -> None:
        model = self.model().train()
        batch = self.batch([3, 4, 5, 6])  # of two images, batch norm at stride 32 sees too little to be steady
        full = model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch)
        with torch.autocast("cpu", torch.bfloat16):
            raw = model(batch.images, batch.sizes, batch.targets)
        half = model.loss_terms(raw, batch)
        for name, value in full.items():
            assert half[name].dtype == torch.float32
            assert half[name].item() == pytest.approx(value.item(), rel=0.1, abs=0.05), name

    @pytest.mark.slow
    def test_exported_files_give_what_pytorch_gives_and_decode_without_torch(
        self, tmp_path: Path, record_property: Callable[[str, str], None]
    ) -> None:
        """What is recorded here is a column of docs/support.md."""
        self.skip_variants()
        files = []
        for seed in (1, 2):
            files.append(tmp_path / f"{seed}.png")
            Image.fromarray(draw(seed, (100, 120), (3, 6))[0].permute(1, 2, 0).numpy()).save(files[-1])
        batch = self.batch([1, 2])
        model = unit_variance(self.model(), batch.images[:1])
        checkpoint = Checkpoint(model, RunConfig(self.preset, model.config, self.input()), self.categories, {})
        # objects of random models are too many near-ties to be compared: the arrays are
        config = ExportConfig(self.size, dynamic=("batch",))
        path = export(checkpoint, tmp_path / "model.onnx", config, images=files, force=True).path
        ours, theirs = TorchRuntime(model, "cpu", fold=True), OnnxRuntime(path)
        self.check_equal(ours, theirs, batch)
        record_property("support", "ONNX")
        assert theirs.exported.batch is None
        record_property("support", "open batch")
        if THOROUGH and not self.no_openvino:  # tests/export tries three methods always
            to_openvino(path, path.with_suffix(".xml"), theirs.description)
            self.check_equal(ours, OpenVinoRuntime(path.with_suffix(".xml")), batch)
            record_property("support", "OpenVINO")
        elif THOROUGH:
            with pytest.raises(MaskkitError, match=r"no deformable convolution; export it as .onnx"):
                to_openvino(path, path.with_suffix(".xml"), theirs.description)

        segmenter = maskkit.load(path)
        predictions = list(segmenter.predict_many(files, score=0.0))
        rows = [p.to_coco() for p in predictions]
        assert rows_without_torch(path, files) == json.loads(json.dumps(rows))
        if predictions[0].instances is not None:
            followed = Tracker(score=0.0)(predictions[0]).instances
            assert followed is not None
            assert followed.track_ids is not None
            assert len(followed.track_ids) == len(predictions[0])
            record_property("support", "tracked")

    @pytest.mark.slow
    def test_an_exported_file_of_eight_bits(self, tmp_path: Path, record_property: Callable[[str, str], None]) -> None:
        """Its outputs have the same shapes and are finite; what eight bits cost in accuracy depends on the weights."""
        checkpoint, batch = self.to_export(self.model_config())
        data = open_dataset(shapes.write(tmp_path / "drawn", train=50, val=1, size=self.size), "train")
        config = ExportConfig(self.size, precision="int8")
        path = export(checkpoint, tmp_path / "model.onnx", config, data=data, calibration=data, force=True).path
        given = batch.images[:1].numpy(), batch.sizes[:1].numpy()
        expected = TorchRuntime(checkpoint.model, "cpu", fold=True).run(*given)
        found = OnnxRuntime(path).run(*given)
        assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in expected.items()}
        assert all(np.isfinite(array).all() for array in found.values())
        record_property("support", "int8")

    @pytest.mark.slow
    def test_an_exported_file_of_open_size(self, tmp_path: Path, record_property: Callable[[str, str], None]) -> None:
        """On a backbone that does not pad by the size of the image."""
        config = self.model_config()
        if isinstance(config, BackboneModelConfig) and config.backbone.pad_same:
            config = change(config, backbone={"name": "resnet18", "pad_same": False})
        checkpoint, batch = self.to_export(config)
        path = tmp_path / "model.onnx"
        with suppress(MaskkitError):  # it says so, and writes nothing
            export(checkpoint, path, ExportConfig(self.size, dynamic=("size",)), force=True)
        if path.exists():
            theirs, other = OnnxRuntime(path), (self.size[0] + 64, self.size[1] + 32)
            assert theirs.exported.size is None
            images = torch.nn.functional.pad(batch.images, [0, 32, 0, 64])  # enlarged, scores of RTMDet-Ins are all 1
            batch = replace(batch, images=images, sizes=torch.tensor([other] * len(batch)))
            self.check_equal(TorchRuntime(checkpoint.model, "cpu", fold=True), theirs, batch)
            record_property("support", "open size")

    def to_export(self, config: ModelConfig) -> tuple[Checkpoint, Batch]:
        """A small model whose outputs are not all alike, and two images. These tests fill docs/support.md alone."""
        if not THOROUGH:
            pytest.skip("tried with MASKKIT_THOROUGH=1")
        torch.manual_seed(0)
        batch = self.batch([1, 2])
        model = unit_variance(zoo.model_class(self.preset)(config), batch.images[:1])  # type: ignore[call-arg]
        return Checkpoint(model, RunConfig(self.preset, model.config, self.input()), self.categories, {}), batch

    def skip_variants(self) -> None:
        if self.variant and not THOROUGH:
            pytest.skip("a variant: it is tried with MASKKIT_THOROUGH=1")

    def check_equal(self, ours: Runtime, theirs: Runtime, batch: Batch) -> None:
        """Both give the same shapes for all images, and the same values for the first, on which the model was scaled.

        Of rows with scores alike the order does not count.
        """
        given = batch.images.numpy(), batch.sizes.numpy()
        a, b = ours.run(*given), theirs.run(*given)
        assert {n: x.shape for n, x in a.items()} == {n: x.shape for n, x in b.items()}
        scores = torch.from_numpy(a["scores"][0]) if "boxes" in a else None
        sure = slice(None) if scores is None else distinct(scores).numpy()
        for name, array in a.items():
            near = np.isclose(array[0][sure], b[name][0][sure], atol=2e-3, rtol=1e-3)
            assert near.mean() > self.near, (name, near.mean())

    @pytest.mark.slow
    def test_overfits_two_drawn_images(self) -> None:
        self.skip_variants()
        torch.manual_seed(0)
        settings = self.overfit
        given = replace(self.input(), size=settings["size"])
        data = self.learnt(settings["size"])
        batch = collate([apply(eval_ops(given), data.load(i), np.random.default_rng(0)) for i in range(2)], given)
        model = self.model()
        seen = []

        def learnt() -> bool:
            with torch.no_grad():
                seen.append(self.agreement(model, batch, data))
            return seen[-1] > self.floor

        overfit_batch(model, batch, settings["steps"], settings["lr"], learnt)
        assert seen[-1] > self.floor, seen

    def learnt(self, size: tuple[int, int]) -> Dataset:
        """The two images."""
        return self.task().view(shapes_dataset(2, seed=self.overfit_seed, size=size, objects=(2, 3)))

    def task(self) -> Task:
        return TASKS[zoo.model_class(self.preset).task_of(self.model_config())]

    def agreement(self, model: Model, batch: Batch, data: Dataset) -> float:
        """AP of what a trained model finds on the images of ``data``, which are those of ``batch``."""
        predictions = model.decode(model(batch.images), batch.metas, data.categories)
        rows = [row for p in predictions for row in p.to_coco()]
        if not rows:
            return 0.0
        result = self.task().evaluate(rows, data)
        assert isinstance(result, CocoResult)
        assert (result.segm is not None) == ("instance" in model.tasks)
        # masks that are never shown cannot be overfitted: a method trained on boxes is evaluated by its boxes
        numbers = result.main if "masks" in model.supervision else result.bbox
        assert numbers is not None
        assert numbers["AP"] is not None
        return numbers["AP"]


def overfit_batch(model: Model, batch: Batch, steps: int, lr: float, learnt: Callable[[], bool]) -> None:
    """Train on one batch alone, until it is ``learnt``, which is asked several times in the second half."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for step in range(1, steps + 1):
        losses = model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        rate.step()
        if step == steps or (2 * step >= steps and step % 20 == 0):
            model.eval()
            if learnt():
                return
            model.train()
    model.eval()


def tensors(raw: Any) -> list[Tensor]:
    """All tensors of a `Raw`, whose fields may be tuples of levels, or None."""
    return [leaf for leaf in tree_leaves(raw) if isinstance(leaf, Tensor)]


def mask_fields(chosen: Any) -> list[Tensor]:
    """The masks among the fields of a selection: none for a detector."""
    return [field for field in chosen if field.ndim == 4]


def collate_two(a: Batch, b: Batch) -> Batch:
    return Batch(
        torch.cat([a.images, b.images]), torch.cat([a.sizes, b.sizes]), a.targets + b.targets, a.metas + b.metas
    )


def with_large_object(target: Target, size: tuple[int, int]) -> Target:
    """The target with one more object in the middle, for the coarsest level of a pyramid."""
    height, width = size
    box = torch.tensor([[0.22 * width, 0.22 * height, 0.78 * width, 0.78 * height]])
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, int(0.22 * height) : int(0.78 * height), int(0.22 * width) : int(0.78 * width)] = True
    assert target.masks is not None
    return Target.of(
        torch.cat([target.boxes, box]),
        torch.cat([target.labels, torch.zeros(1, dtype=torch.int64)]),
        torch.cat([target.masks.dense(), mask]),
    )


def distinct(scores: Tensor, gap: float = 1e-4) -> Tensor:
    """Which of the sorted scores differ from both neighbours by more than ``gap``."""
    far = scores.diff().abs() > gap
    ends = torch.ones(1, dtype=torch.bool)
    return torch.cat([ends, far]) & torch.cat([far, ends]) & (scores > 0)
