"""Label assignment of anchors."""

import numpy as np
import torch

from maskkit.geometry import boxes as box_math
from maskkit.nn.anchor_targets import assign_anchors
from maskkit.targets import Target


def some_priors() -> torch.Tensor:
    """Anchors of three shapes on five grids over an input of 128 x 128 pixels."""
    parts = []
    for cells, side in ((16, 12), (8, 20), (4, 32), (2, 48), (1, 72)):
        y, x, ratio = torch.meshgrid(
            *[(torch.arange(cells) + 0.5) / cells] * 2, torch.tensor([1, 0.5, 2]).sqrt(), indexing="ij"
        )
        parts.append(torch.stack([x, y, side / 128 * ratio, side / 128 / ratio], -1).reshape(-1, 4))
    return torch.cat(parts)


def test_every_object_gets_an_anchor_and_the_best_pair_chooses_first() -> None:
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.52, 0.5, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]])
    exact, rival = [0.4, 0.4, 0.6, 0.6], [0.41, 0.4, 0.61, 0.6]
    matches = assign_anchors(Target.of([rival, exact], [0, 1]), priors)
    assert matches.classes.tolist() == [2, 1, 0]
    assert matches.objects[:2].tolist() == [1, 0]


def test_matching_agrees_with_the_loop_it_replaces() -> None:
    rng = np.random.default_rng(3)
    priors = some_priors()
    for count in (1, 7, 40):
        low = rng.uniform(0, 0.8, (count, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.02, 0.4, (count, 2))], 1)
        target = Target.of(boxes, rng.integers(0, 3, count))
        overlaps = box_math.iou(target.boxes, box_math.to_corners(priors))
        best, objects = overlaps.max(0)
        for _ in range(count):
            n, p = divmod(int(overlaps.argmax()), overlaps.shape[1])
            best[p], objects[p] = 2, n
            overlaps[n], overlaps[:, p] = -1, -1
        matches = assign_anchors(target, priors)
        assert torch.equal(matches.classes > 0, best >= 0.5)
        assert torch.equal(matches.objects[best >= 0.5], objects[best >= 0.5])


def test_anchors_inside_a_crowd_are_neither_object_nor_background() -> None:
    priors = torch.tensor([[0.25, 0.25, 0.1, 0.1], [0.75, 0.75, 0.1, 0.1]])
    matches = assign_anchors(Target.of([[0, 0, 0.5, 0.5]], [0], crowd=[True]), priors)
    assert matches.classes.tolist() == [-1, 0]
