"""What every semantic method must do: the suite of `Conformance`, with label maps in place of objects."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from maskkit.data.dataset import Dataset
from maskkit.data.label_map import IGNORE
from maskkit.data.loader import collate
from maskkit.data.shapes import CATEGORIES, shapes_dataset
from maskkit.data.transforms import apply, eval_ops
from maskkit.decode.outputs import ClassLogits
from maskkit.eval.numbers import rank
from maskkit.eval.semantic.metric import evaluate
from maskkit.models.base import Model
from maskkit.prediction import Categories
from maskkit.targets import Batch
from tests.models.conformance import Conformance, tensors

CLASSES = Categories(("background", *CATEGORIES.names), (0, *CATEGORIES.ids))


class SemanticConformance(Conformance):
    """One semantic method under the tests that all share."""

    size: ClassVar[tuple[int, int]] = (96, 96)
    categories: ClassVar[Categories] = CLASSES
    overfit: ClassVar[dict[str, Any]] = {"steps": 150, "lr": 3e-3, "size": (160, 160)}
    floor: ClassVar[float] = 0.95
    test_boxes_alone_teach_masks = None  # type: ignore[assignment]  # a label map has no boxes

    @classmethod
    def batch(cls, seeds: list[int], objects: tuple[int, int] = (2, 5), **options: Any) -> Batch:
        samples = []
        for seed in seeds:
            data = shapes_dataset(1, seed, cls.size, objects, **options).as_semantic()
            samples.append(apply(eval_ops(cls.input()), data.load(0), np.random.default_rng(0)))
        return collate(samples, cls.input())

    def cases(self) -> dict[str, Batch]:
        ignored, unknown = self.batch([1, 2]), self.batch([3])
        ignored.targets = [replace(t, semantic=torch.full_like(t.semantic, IGNORE)) for t in ignored.targets]  # type: ignore[arg-type]
        unknown.targets = [replace(t, semantic=None) for t in unknown.targets]
        return {
            "background only": self.batch([0, 1], (0, 0)),
            "one": self.batch([2], (1, 1)),
            "many": self.batch([3, 4], (8, 12)),
            "all ignored": ignored,
            "not given": unknown,
            "boxes only": self.batch([6, 7], box_only=1.0),
            "crowd": self.batch([5], (0, 0), crowd=True),
        }

    def test_shapes_of_what_is_selected(self) -> None:
        model = self.model().eval()
        with torch.no_grad():
            chosen = model.select(model(self.batch([1, 2]).images))
        assert isinstance(chosen, ClassLogits)
        assert chosen.logits.shape[:2] == (2, len(CLASSES))
        assert chosen.logits.isfinite().all()

    def test_gradient_reaches_every_parameter(self) -> None:
        model = self.model().train()
        for p in model.parameters():  # a layer that starts at zero passes no gradient on before it has moved
            if p.requires_grad and not p.any():
                torch.nn.init.normal_(p, std=0.05)
        batch = self.batch([3, 4, 9, 10], (5, 10))
        torch.stack(
            list(model.loss_terms(model(batch.images, batch.sizes, batch.targets), batch).values())
        ).sum().backward()
        still = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
        assert not still, still

    def test_ignored_pixels_do_not_count(self) -> None:
        """The loss of an image is that of its known pixels, whatever the network says about the others."""
        model = self.model().eval()
        batch = self.batch([3])
        (target,) = batch.targets
        assert target.semantic is not None
        raw = model(batch.images)
        half = target.semantic.clone()
        half[:, half.shape[1] // 2 :] = IGNORE
        batch.targets = [replace(target, semantic=half)]
        total = torch.stack(list(model.loss_terms(raw, batch).values())).sum()
        gradients = torch.autograd.grad(total, tensors(raw), allow_unused=True)
        for gradient in (g for g in gradients if g is not None and g.any()):
            far = gradient[..., round(gradient.shape[-1] * 0.75) :]
            assert not far.any(), "a gradient where nothing is known"

    def test_a_image_gives_the_same_alone_and_in_a_batch(self) -> None:
        model = self.model().eval()
        images = self.batch([1, 2, 3]).images
        with torch.no_grad():
            together = model.select(model(images)).logits
            for i in range(len(images)):
                alone = model.select(model(images[i : i + 1])).logits[0]
                assert torch.allclose(alone, together[i], atol=1e-3, rtol=1e-3)

    def agreement(self, model: Model, batch: Batch, data: Dataset) -> float:
        """mIoU of what a trained model says about the images of ``data``, which are those of ``batch``."""
        predictions = model.decode(model(batch.images), batch.metas, CLASSES)
        return rank(evaluate([row for p in predictions for row in p.to_coco()], data).main["mIoU"])
