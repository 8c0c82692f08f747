"""Label assignment and loss of RTMDet, with the paper's formulas written out as an oracle."""

import math

import pytest
import torch

from maskkit.config import BackboneConfig
from maskkit.errors import MaskkitError
from maskkit.geometry.boxes import iou
from maskkit.nn.backbones.backbone import Backbone, fold_batch_norm
from maskkit.nn.csp import CspPyramid
from maskkit.nn.fcos import FcosRaw
from maskkit.nn.fcos_targets import locate
from maskkit.nn.rtmdet import RtmDetectorConfig, RtmHead, assign, boxes_of, costs_of, rtm_detect, rtm_loss
from maskkit.nn.soft_labels import shares_of
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes

CLASSES, SIZE = 3, (64, 96)
TARGET = Target.of([[10, 6, 50, 40], [40, 20, 90, 60], [0, 0, 96, 64]], [1, 2, 0], crowd=[False, False, True])
CENTRES = torch.tensor([[28.0, 22.0], [66.0, 41.0], [48.0, 32.0]])
CONFIG = RtmDetectorConfig()


def raw_outputs(seed: int = 0, images: int = 1) -> FcosRaw:
    rng = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> list[torch.Tensor]:
        return [torch.randn(images, channels, SIZE[0] // s, SIZE[1] // s, generator=rng) for s in CONFIG.strides]

    return FcosRaw(tuple(maps(CLASSES)), tuple(m.abs() * 2 for m in maps(4)), (), tuple(maps(5)))


def of_one_image(raw: FcosRaw):
    locations = locate(raw.logits, CONFIG.strides, corners=True)
    logits = torch.cat([level[0].flatten(1).T for level in raw.logits])
    return logits, boxes_of(raw, locations)[0], locations


def test_costs_are_those_of_the_paper():
    logits, boxes, locations = of_one_image(raw_outputs())
    costs = costs_of(logits, boxes, TARGET, CENTRES, locations)
    inside = [
        i
        for i, (x, y) in enumerate(locations.xy.tolist())
        if any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in TARGET.boxes[:2].tolist())
    ]
    assert costs.locations.tolist() == inside
    assert costs.objects.tolist() == [0, 1]
    for row, place in enumerate(inside):
        for column in (0, 1):
            overlap = iou(boxes[place : place + 1], TARGET.boxes[column : column + 1]).item()
            total = -3 * math.log(overlap + 1e-7)
            for k, x in enumerate(logits[place].tolist()):
                y, p = (overlap if k == int(TARGET.labels[column]) else 0.0), 1 / (1 + math.exp(-x))
                total += -(y * math.log(p) + (1 - y) * math.log(1 - p)) * (y - p) ** 2
            away = math.dist(locations.xy[place].tolist(), CENTRES[column].tolist()) / float(locations.stride[place])
            total += 10 ** (away - 3)
            assert float(costs.costs[row, column]) == pytest.approx(total, rel=1e-4)


def test_an_object_takes_as_many_locations_as_its_overlaps_amount_to_and_at_least_one():
    overlaps = torch.tensor([[0.9, 0.1], [0.8, 0.1], [0.7, 0.0], [0.5, 0.3]])
    assert shares_of(overlaps, 3).tolist() == [2, 1]  # 2.4 and 0.5
    assert shares_of(overlaps, 13).tolist() == [2, 1]


def test_a_location_of_two_objects_learns_the_cheaper_one():
    logits, boxes, locations = of_one_image(raw_outputs())
    costs = costs_of(logits, boxes, TARGET, CENTRES, locations)
    tied = costs._replace(costs=torch.full_like(costs.costs, 9.0))
    tied.costs[5] = torch.tensor([3.0, 2.0])
    found = assign(tied, len(locations.xy), 13)
    assert found.objects[costs.locations[5]] == 1
    assert found.overlaps[costs.locations[5]] == costs.overlaps[5, 1]
    assert set(found.objects.tolist()) >= {-1, 1}


@pytest.mark.parametrize(
    "target",
    [Target.of([], []), Target.of([[1, 1, 7, 7]], [0]), Target.of([[0, 0, 96, 64]], [0], crowd=[True])],
    ids=["no object", "no location in it", "a crowd alone"],
)
def test_without_candidates_all_is_background(target):
    raw = raw_outputs()
    logits, boxes, locations = of_one_image(raw)
    centres = (target.boxes[:, :2] + target.boxes[:, 2:]) / 2
    found = assign(costs_of(logits, boxes, target, centres, locations), len(locations.xy), 13)
    assert (found.objects == -1).all()
    batch = Batch(
        torch.zeros(1, 3, *SIZE), full_sizes(torch.zeros(1, 3, *SIZE)), [target], [ImageMeta(0, "", SIZE, SIZE)]
    )
    losses, positives = rtm_loss(raw, batch, CONFIG, [centres])
    assert len(positives.image) == 0
    assert losses["box"] == 0
    expected = (torch.nn.functional.softplus(logits) * logits.sigmoid() ** 2).sum()
    ignored = locations.xy.gt(0).all(1) & bool(target.crowd.any())  # strictly inside the crowd's box
    expected = (torch.nn.functional.softplus(logits) * logits.sigmoid() ** 2)[~ignored].sum()
    assert losses["classification"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_of_exactly_the_threshold_are_dropped_and_boxes_end_at_the_input():
    raw = raw_outputs()
    quiet = tuple(torch.full_like(level, -20.0) for level in raw.logits)
    quiet[0][0, 1, 2, 3], quiet[0][0, 2, 5, 9] = 0.0, math.log(3)
    distances = tuple(torch.full_like(level, 30.0) for level in raw.distances)
    found = rtm_detect(FcosRaw(quiet, distances, (), raw.extra), RtmDetectorConfig(min_score=0.5))
    kept = found.scores[0] > 0
    assert found.scores[0, kept].tolist() == pytest.approx([0.75])
    assert found.labels[0, kept].tolist() == [2]
    assert found.boxes[0, kept].tolist() == [[0, 0, SIZE[1], SIZE[0]]]
    assert torch.equal(found.extra[0, 0], raw.extra[0][0, :, 5, 9])


def test_levels_share_convolutions_and_not_norms():
    torch.manual_seed(0)
    head = RtmHead(RtmDetectorConfig(width=8), CLASSES, extra=5).train()
    levels = [torch.randn(2, 8, n, n) + i for i, n in enumerate((8, 4, 2))]
    before = [level.clone() for level in levels]
    raw = head(levels)
    assert all(torch.equal(a, b) for a, b in zip(levels, before, strict=True)), "nothing is changed in place"
    assert len(head.convs) == 2
    means = [norms[0].running_mean for norms in head.norms]  # type: ignore[index, union-attr]
    assert not torch.allclose(means[0], means[1])
    # the official code moves these statistics twice in a step
    conv = torch.nn.functional.conv2d(levels[0], head.convs[0].weight, padding=1)  # type: ignore[arg-type]
    assert torch.allclose(means[0], 0.19 * conv.mean((0, 2, 3)), atol=1e-6)
    assert raw.quality == ()
    assert all((level >= 0).all() for level in raw.distances)


def test_norms_of_a_shared_convolution_are_not_folded_into_it():
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neck = CspPyramid([3, 6], 8, 1)
            self.head = RtmHead(RtmDetectorConfig(width=8), CLASSES)

        def forward(self, images):
            halves = torch.nn.functional.avg_pool2d(images, 2)
            levels = self.neck([images, torch.cat([halves, halves], 1)])
            return self.head([*levels, levels[1]]).logits

    net = Net().train()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    for _ in range(3):
        net(torch.randn(2, 3, 16, 16))
    images = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = net.eval()(images)
        folded = fold_batch_norm(net, images)
        for ours, theirs in zip(folded(images), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-4)
    kept = [name for name, m in folded.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(kept) == 6
    assert all(name.startswith("head.norms") for name in kept)


def test_cspnext_is_a_backbone_by_its_name():
    backbone = Backbone.of(BackboneConfig("cspnext_tiny"), strides=(4, 16))
    features = backbone.train()(torch.zeros(1, 3, 64, 96))
    assert {s: tuple(f.shape[1:]) for s, f in features.items()} == {4: (48, 16, 24), 16: (192, 4, 6)}
    assert backbone.channels == {4: 48, 16: 192}
    assert not backbone.is_of_timm
    assert not any(m.training for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)), "frozen"
    with pytest.raises(MaskkitError, match="cspnext_tiny is trained as a whole"):
        Backbone.of(BackboneConfig("cspnext_tiny", frozen_stride=4))
    with pytest.raises(MaskkitError, match=r"features at strides \[4, 8, 16, 32\], not at \[64\]"):
        Backbone.of(BackboneConfig("cspnext_tiny"), strides=(8, 64))
