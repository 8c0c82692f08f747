"""EPS under the suite that all semantic methods share, and what is its own."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskkit import zoo
from maskkit.checkpoints import convert as published
from maskkit.config import DataConfig, change
from maskkit.data.label_map import IGNORE
from maskkit.data.shapes import CATEGORIES, shapes_dataset
from maskkit.decode.outputs import TagMaps
from maskkit.errors import DataError
from maskkit.eval.numbers import rank
from maskkit.eval.semantic.metric import SemanticResult, count
from maskkit.models.base import Model
from maskkit.models.eps import Eps, EpsConfig, EpsRaw
from maskkit.nn.backbones.resnet38 import Resnet38, Stage
from maskkit.nn.semantic import truth_of
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch
from maskkit.zoo.class_names import VOC
from tests.models.conformance import overfit_batch
from tests.models.semantic import CLASSES, SemanticConformance


def labels_of(model: Model, raw: EpsRaw) -> torch.Tensor:
    """What the decoder makes of the maps, cell by cell."""
    size = (raw.maps.shape[2], raw.maps.shape[3])
    found = model.decode(raw, [ImageMeta(i, "", size, size) for i in range(len(raw.maps))], CLASSES)
    return torch.stack([torch.from_numpy(p.semantic).long() for p in found if p.semantic is not None])


class TestEps(SemanticConformance):
    preset = "eps-mobilenetv2-256"
    overfit: ClassVar[dict[str, Any]] = {"steps": 100, "lr": 3e-3, "size": (128, 128)}
    test_ignored_pixels_do_not_count = None  # type: ignore[assignment]  # tags speak of the whole image

    @classmethod
    def batch(cls, seeds: list[int], objects: tuple[int, int] = (2, 5), **options: Any) -> Batch:
        """Tags, and as saliency what is not background; the label map is there but nothing may look at it."""
        batch = super().batch(seeds, objects, **options)
        for i, (seed, target) in enumerate(zip(seeds, batch.targets, strict=True)):
            data = shapes_dataset(1, seed, cls.size, objects, **options).as_semantic()
            assert target.semantic is not None
            salient = ((target.semantic > 0) & (target.semantic != IGNORE)).float()
            batch.targets[i] = replace(target, tags=data.load(0, "tags")[1].tags, saliency=salient)
        return batch

    def test_shapes_of_what_is_selected(self) -> None:
        model = self.model().eval()
        with torch.no_grad():
            chosen = model.select(model(self.batch([1, 2]).images))
        assert isinstance(chosen, TagMaps)
        assert chosen.activations.shape[:2] == (2, len(CLASSES) - 1)
        assert chosen.present.shape == (2, len(CLASSES) - 1)
        assert chosen.activations.isfinite().all()
        assert chosen.activations.min() >= 0

    def test_a_image_gives_the_same_alone_and_in_a_batch(self) -> None:
        model = self.model().eval()
        images = self.batch([1, 2, 3]).images
        with torch.no_grad():
            together = model.select(model(images))
            for i in range(len(images)):
                alone = model.select(model(images[i : i + 1]))
                assert torch.allclose(alone.activations[0], together.activations[i], atol=1e-3, rtol=1e-3)
                assert torch.equal(alone.present[0], together.present[i])

    @pytest.mark.slow
    def test_overfits_two_drawn_images(self) -> None:
        """One class in each image: tags say which, saliency says where, and the maps have it on their cells.

        Every tagged class counts as foreground: random weights have no first idea of where it is.
        """
        torch.manual_seed(0)
        settings = self.overfit
        whole = type("Large", (type(self),), {"size": settings["size"]})
        batch = whole.batch([4, 6], (1, 1))
        shown = [t.tags[1:].nonzero().flatten().tolist() for t in batch.targets if t.tags is not None]
        assert len(shown[0]) == len(shown[1]) == 1
        assert shown[0] != shown[1]
        model = self.model(tau=-1.0)

        def agreement() -> float:
            with torch.no_grad():
                found = labels_of(model, model(batch.images))
            truth = F.interpolate(truth_of(batch)[:, None].float(), size=found.shape[1:], mode="nearest")[:, 0].long()
            counts = sum(count(t.numpy(), f.numpy(), len(CLASSES)) for t, f in zip(truth, found, strict=True))
            assert isinstance(counts, np.ndarray)
            return rank(SemanticResult(CLASSES.names, counts, np.zeros((len(CLASSES), 3), int)).main["mIoU"])

        overfit_batch(model, batch, settings["steps"], settings["lr"], lambda: agreement() > 0.95)
        assert agreement() > 0.95


def test_the_baseline_learns_from_tags_alone() -> None:
    batch = TestEps.batch([3, 4])
    baseline = TestEps.model(background_map=False).train()
    raw = baseline(batch.images)
    assert raw.maps.shape[1] == len(CLASSES) - 1
    losses = baseline.loss_terms(raw, batch)
    assert set(losses) == {"classification"}
    losses["classification"].backward()
    assert all(p.grad is not None and p.grad.any() for p in baseline.parameters())
    assert baseline.select(raw).activations.shape[1] == len(CLASSES) - 1


def small(**knobs: Any) -> Eps:
    preset = zoo.preset("eps-mobilenetv2-256")
    assert isinstance(preset.model, EpsConfig)
    return Eps(change(preset.model, num_classes=3, **knobs)).eval()


def certain(where: torch.Tensor) -> torch.Tensor:
    """Maps (1, 3, h, w) that are sure of the classes ``where`` names: 0, 1, or 2 for the background."""
    return 20 * F.one_hot(where, 3).permute(2, 0, 1)[None].float()


WHERE = torch.full((8, 8), 2)
WHERE[:, :4] = 0
BOTH = torch.tensor([[True, True]])


def test_maps_that_equal_the_saliency_have_no_loss() -> None:
    saliency = (WHERE == 0).float()[None]
    estimate = small().estimate_saliency(certain(WHERE), BOTH, saliency)
    assert torch.allclose(estimate.saliency, saliency, atol=1e-4)
    assert estimate.overlap[0].tolist() == pytest.approx([1, 0], abs=1e-3)


def test_tau_decides_which_classes_are_background() -> None:
    saliency = torch.zeros(1, 8, 8)
    saliency[:, :, :2] = 1  # half of the class
    for tau, counts in ((0.4, True), (0.6, False)):
        estimate = small(tau=tau).estimate_saliency(certain(WHERE), BOTH, saliency)
        assert bool(estimate.foreground[0, 0, 3] > 0.99) == counts
        assert bool(estimate.not_background[0, 0, 3] > 0.99) == counts
        assert estimate.overlap[0, 0].item() == pytest.approx(0.5, abs=1e-3)


def test_a_class_that_is_not_tagged_gets_no_credit() -> None:
    saliency = (WHERE == 0).float()[None]
    estimate = small().estimate_saliency(certain(WHERE), torch.tensor([[False, True]]), saliency)
    assert not (estimate.foreground > 0.01).any()
    assert (estimate.not_background[:, :, :4] > 0.99).all(), "it is in neither sum"


def test_mix_weighs_the_two_halves() -> None:
    maps, saliency = torch.randn(1, 3, 8, 8), torch.rand(1, 8, 8)
    parts = small(mix=1.0).estimate_saliency(maps, BOTH, saliency)
    assert torch.equal(parts.saliency, parts.foreground)
    mixed = small(mix=0.25).estimate_saliency(maps, BOTH, saliency)
    assert torch.allclose(mixed.saliency, 0.25 * mixed.foreground + 0.75 * mixed.not_background)


def test_without_tags_the_model_names_the_classes_that_it_sees() -> None:
    model = small()
    labels = labels_of(model, EpsRaw(certain(torch.full((8, 8), 2)) - 1))
    assert not labels.any(), "no class is likelier than not"
    labels = labels_of(model, EpsRaw(certain(WHERE)))[0]
    assert torch.equal(labels, torch.where(WHERE == 0, 1, 0))


def test_why_not() -> None:
    tags = DataConfig(labels="tags")
    with_saliency = replace(tags, saliency="maps")
    assert small().why_not(with_saliency, CLASSES) is None
    assert "--labels tags" in (small().why_not(replace(with_saliency, labels="masks"), CLASSES) or "")
    assert "--data.saliency" in (small().why_not(tags, CLASSES) or "")
    assert "background" in (small().why_not(with_saliency, CATEGORIES) or "")
    baseline = small(background_map=False)
    assert baseline.why_not(tags, CLASSES) is None
    assert "leave" in (baseline.why_not(with_saliency, CLASSES) or "")
    yolact = zoo.model_class("yolact-mobilenetv2-256")(zoo.preset("yolact-mobilenetv2-256").model)  # type: ignore[call-arg]
    assert "saliency" in (yolact.why_not(with_saliency, VOC) or "")


def test_resnet38_keeps_a_stride_of_eight_and_freezes_its_first_layers() -> None:
    stages = (Stage(2, (8, 8), 2), Stage(1, (8, 16), 2), Stage(1, (8, 16), 2), Stage(1, (4, 8, 32), dilations=(1, 4)))
    net = Resnet38("train", 2, stages)
    assert net.channels == {8: 32}
    assert net(torch.zeros(1, 3, 41, 50))[8].shape == (1, 32, 6, 7)
    learnt = {name.split(".")[0] + "." + name.split(".")[1] for name, p in net.named_parameters() if p.requires_grad}
    assert learnt == {"stages.1", "stages.2", "stages.3", "last_norm.weight", "last_norm.bias"}
    frozen = Resnet38("frozen", 0, stages).train()
    assert not any(m.training for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_names_that_no_checkpoint_has_are_refused() -> None:
    with pytest.raises(DataError, match="b8"):
        published.convert({"b8.conv_branch1.weight": torch.zeros(1)}, "eps-resnet38")
