"""BoxInst: the shared conformance, and what is its own."""

from typing import Any, ClassVar

import torch

from maskkit.models.boxinst import shared_out
from maskkit.nn.fcos import FcosRaw
from maskkit.nn.fcos_targets import Positives
from tests.models.conformance import Conformance
from tests.models.test_condinst import SMALL


class TestBoxInst(Conformance):
    preset = "boxinst-mobilenetv2-256"
    knobs: ClassVar[dict[str, Any]] = SMALL


def test_masks_are_never_looked_at() -> None:
    model = TestBoxInst.model().train()
    batch = TestBoxInst.batch([3, 4])
    raw = model(batch.images)
    known = model.loss_terms(raw, batch)
    for target in batch.targets:
        assert target.masks is not None
        target.masks = target.masks[torch.zeros(len(target), dtype=torch.int64)]
    assert all(torch.equal(value, known[name]) for name, value in model.loss_terms(raw, batch).items())


def test_the_places_of_a_image_are_shared_out_among_its_objects() -> None:
    # image 0: object 1 with five locations, object 4 with two; image 1: one object with four
    image = torch.tensor([0] * 7 + [1] * 4)
    objects = torch.tensor([1, 4, 1, 1, 4, 1, 1, 0, 0, 0, 0])
    location = torch.arange(11)
    logits = torch.full((2, 3, 3, 4), -5.0)
    logits.view(2, 3, 12)[image, 1, location] = torch.tensor([1.0, 1, 5, 4, 2, 3, 2, 0, 3, 1, 2])
    raw = FcosRaw((logits,), (), (torch.zeros(2, 1, 3, 4),), ())
    positives = Positives(image, location, objects, torch.ones(11).long(), torch.zeros(11, 4), torch.zeros(11))
    kept = shared_out(positives, raw, 6)
    assert kept.location.tolist() == [2, 3, 5, 4, 1, 8, 10, 9, 7]
    assert shared_out(positives, raw, 1).location.tolist() == [2, 4, 8]  # one at least
    none = Positives(*(column[:0] for column in positives))
    assert len(shared_out(none, raw, 6).label) == 0
