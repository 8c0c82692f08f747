"""Parts of the FCOS detector."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from maskkit.errors import MaskkitError
from maskkit.nn.fcos import (
    FcosDetectorConfig,
    FcosHead,
    FcosRaw,
    detect,
    fcos_loss,
    flatten,
    keep_best,
    overlap,
    pick,
    propose,
    relative_boxes,
    require_whole_cells,
)
from maskkit.nn.fcos_targets import Locations, assign_locations, box_centres, centerness, find_positives, locate
from maskkit.prediction import ImageMeta
from maskkit.targets import Batch, Target, full_sizes

CONFIG = FcosDetectorConfig(strides=(8, 16), size_ranges=(64,))


def maps(channels: int, fill: float = 0.0, batch: int = 1) -> tuple[Tensor, ...]:
    """Two levels of a 64 x 96 input."""
    return tuple(torch.full((batch, channels, 64 // s, 96 // s), fill) for s in CONFIG.strides)


def places() -> Locations:
    return locate(maps(1), CONFIG.strides)


def at(x: float, y: float, stride: float) -> int:
    """The index of a location."""
    xy, strides, _ = places()
    return int(torch.nonzero((xy == torch.tensor([x, y])).all(1) & (strides == stride)))


def test_locations_go_level_by_level_and_row_by_row() -> None:
    xy, stride, level = places()
    assert len(xy) == 8 * 12 + 4 * 6
    assert xy[[0, 1, 12, 96, 97]].tolist() == [[4, 4], [12, 4], [4, 12], [8, 8], [24, 8]]
    assert stride[[0, 95, 96]].tolist() == [8, 8, 16]
    assert level[[0, 95, 96]].tolist() == [0, 0, 1]


def test_a_row_that_is_picked_is_that_of_the_flattened_levels() -> None:
    levels = [torch.randn(2, 5, 8, 12), torch.randn(2, 5, 4, 6)]
    image, location = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 95, 96, 119])
    assert torch.equal(pick(levels, image, location), flatten(levels)[image, location])


def test_of_two_objects_the_smaller_has_the_location() -> None:
    target = Target.of([[0, 0, 60, 60], [20, 20, 44, 44]], [2, 0])
    found = assign_locations(target, box_centres(target), places(), CONFIG.size_ranges, CONFIG.radius)
    shared, outside = at(28, 28, 8), at(20, 20, 8)  # near both centres, the second on the edge of the small box
    assert (int(found.classes[shared]), int(found.objects[shared])) == (1, 1)
    assert (int(found.classes[outside]), int(found.objects[outside])) == (3, 0)


@pytest.mark.parametrize(
    ("right", "fine", "coarse"), [(103, True, False), (104, True, True), (108, True, True), (109, False, True)]
)
def test_a_level_takes_what_reaches_as_far_as_it_does_and_both_ends_count(right: int, fine: bool, coarse: bool) -> None:
    target = Target.of([[20, 20, right, 60]], [0])
    found = assign_locations(target, torch.tensor([[42.0, 42.0]]), places(), CONFIG.size_ranges, CONFIG.radius)
    assert bool(found.classes[at(44, 44, 8)]) == fine
    assert bool(found.classes[at(40, 40, 16)]) == coarse


def test_a_wider_centre_has_more_positives() -> None:
    target = Target.of([[4, 4, 60, 60]], [0])
    counts = [
        int((assign_locations(target, box_centres(target), places(), CONFIG.size_ranges, r).classes > 0).sum())
        for r in (0.5, 1.5, 10.0)
    ]
    assert counts[0] < counts[1] < counts[2]


def test_the_background_inside_a_crowd_is_neither() -> None:
    target = Target.of([[0, 0, 48, 64], [10, 10, 40, 40]], [0, 1], crowd=[True, False])
    found = assign_locations(target, box_centres(target), places(), CONFIG.size_ranges, CONFIG.radius)
    assert int(found.classes[at(4, 4, 8)]) == -1
    assert int(found.classes[at(92, 4, 8)]) == 0
    where = at(28, 28, 8)
    assert (int(found.classes[where]), int(found.objects[where])) == (2, 1)


def test_a_image_without_objects_is_background() -> None:
    target = Target.of([], [])
    found = assign_locations(target, box_centres(target), places(), CONFIG.size_ranges, CONFIG.radius)
    assert not found.classes.any()
    assert len(find_positives([found], [target], places()).label) == 0


def test_centerness_is_one_in_the_middle_and_zero_on_an_edge() -> None:
    distances = torch.tensor([[3.0, 2, 3, 2], [0, 2, 6, 2], [1, 2, 4, 2]])
    assert torch.allclose(centerness(distances), torch.tensor([1.0, 0.0, 0.5]))


def test_overlap_counts_one_square_stride_more() -> None:
    distances = torch.tensor([[1.0, 1, 1, 1], [2, 2, 2, 2]])
    truth = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]])
    iou, giou = overlap(distances, truth)
    assert torch.allclose(iou, torch.tensor([1.0, 5 / 17]))
    assert torch.allclose(giou, iou)  # the larger box is the one around both


def test_a_perfect_prediction_costs_no_box_loss() -> None:
    target = Target.of([[10, 12, 50, 56]], [1])
    images = torch.zeros(1, 3, 64, 96)
    batch = Batch(images, full_sizes(images), [target], [ImageMeta(0, "", (64, 96), (64, 96))])
    distances = []
    for s in CONFIG.strides:
        xy = locate([torch.zeros(1, 1, 64 // s, 96 // s)], [s]).xy
        exact = torch.cat([xy - target.boxes[:, :2], target.boxes[:, 2:] - xy], 1).clamp(min=0) / s
        distances.append(exact.T.reshape(1, 4, 64 // s, 96 // s))
    raw = FcosRaw(maps(3), tuple(distances), maps(1), ())
    losses, positives = fcos_loss(raw, batch, CONFIG)
    assert len(positives.label) > 4
    assert losses["box"].item() == pytest.approx(0, abs=1e-6)
    assert fcos_loss(raw, batch, replace(CONFIG, quality="iou"))[0]["box"].item() == pytest.approx(0, abs=1e-6)


def test_spread_locations_are_corners_as_far_apart_as_cells_go_into_the_input() -> None:
    """5 columns of 288 pixels are 57 pixels apart, not 64; see `tests.zoo.test_torchvision` for the library's own."""
    levels = [torch.zeros(1, 1, 28, 36), torch.zeros(1, 1, 4, 5)]
    found = locate(levels, (8, 64), corners=True, spread=True)
    fine, coarse = found.xy[: 28 * 36], found.xy[28 * 36 :]
    assert fine[:3].tolist() == [[0, 0], [8, 0], [16, 0]]
    assert coarse[:6].tolist() == [[0, 0], [57, 0], [114, 0], [171, 0], [228, 0], [0, 56]]
    assert found.stride.unique().tolist() == [8, 64]


def scored(*spots: tuple[int, int, float]) -> FcosRaw:
    """Nothing anywhere but (location on the finest level, class, logit); boxes of 40 pixels; extra is the location."""
    logits, distances = maps(3, -20), maps(4, 2.5)
    for location, label, logit in spots:
        logits[0].view(-1, 96)[label, location] = logit
    number = torch.arange(96.0).view(1, 1, 8, 12), torch.arange(96.0, 120).view(1, 1, 4, 6)
    return FcosRaw(logits, distances, maps(1, 20), number)


def test_of_two_copies_one_stays_and_another_class_does_too() -> None:
    here, beside = at(44, 28, 8), at(52, 28, 8)
    found = detect(scored((here, 0, 3.0), (beside, 0, 2.0), (beside, 2, 1.0)), CONFIG)
    kept = found.scores[0] > 0
    assert found.labels[0, kept].tolist() == [0, 2]
    assert found.locations[0, kept].tolist() == [here, beside]
    assert found.extra[0, kept, 0].tolist() == [here, beside]
    assert found.boxes[0, 0].tolist() == [24, 8, 64, 48]
    assert found.scores[0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(3.0)).sqrt().item())


def test_the_threshold_may_be_on_the_product() -> None:
    raw = scored((at(44, 28, 8), 0, 0.0))._replace(quality=maps(1, -2.0))  # 0.5 * 0.12
    for strict, count in ((False, 1), (True, 0)):
        config = replace(CONFIG, min_score=0.1, score_with_quality=strict)
        assert int((detect(raw, config).scores > 0).sum()) == count


def test_the_score_may_be_the_product_of_candidates_that_are_best_by_class() -> None:
    first, second = at(12, 12, 8), at(76, 44, 8)
    raw = scored((first, 0, 2.0), (second, 0, 1.0))
    quality = maps(1, 20)
    quality[0].view(-1)[first] = -2.0  # the better class has the worse box
    raw = raw._replace(quality=quality)
    for score, best in (("root", second), ("product", first)):
        config = replace(CONFIG, candidates=1, score=score)
        found = detect(raw, config)
        assert found.locations[0, 0] == best
    assert found.scores[0, 0].item() == pytest.approx(float(torch.tensor(2.0).sigmoid() * torch.tensor(-2.0).sigmoid()))


def test_boxes_may_be_cut_at_the_image_before_nms() -> None:
    """Two boxes that overlap little are the same inside the image; one lies in the padding."""
    inside, beside, outside = at(60, 28, 8), at(68, 28, 8), at(92, 28, 8)
    distances = maps(4, 0.5)
    distances[0].view(4, 96)[:, inside] = torch.tensor([2.0, 2, 4, 2])
    distances[0].view(4, 96)[:, beside] = torch.tensor([3.0, 2, 40, 2])
    raw = scored((inside, 0, 3.0), (beside, 0, 2.0), (outside, 0, 1.0))._replace(distances=distances)
    assert int((detect(raw, CONFIG).scores > 0).sum()) == 3
    for extents, kept in ((torch.tensor([[80.0, 64.0]]), [inside]), (None, [inside, outside])):
        config = replace(CONFIG, clip=True, nms_threshold=0.6)
        found = detect(raw._replace(extents=extents), config)
        assert found.locations[0, found.scores[0] > 0].tolist() == kept
        assert found.boxes[0, 0].tolist() == [44, 12, 80 if extents is not None else 92, 44]
        assert raw._replace(extents=extents).float().extents is extents


def test_candidates_are_counted_level_by_level() -> None:
    found = propose(scored(*((n, 0, 1.0) for n in range(96))), replace(CONFIG, candidates=10))
    assert found.scores.shape == (1, 20)
    assert int((found.scores > 0).sum()) == 10


def test_what_is_kept_is_padded_with_score_zero_and_boxes_are_clipped() -> None:
    raw = scored((at(4, 4, 8), 1, 2.0))
    found = keep_best(propose(raw, CONFIG), raw, 30)
    assert found.scores.shape == (1, 30)
    assert int((found.scores > 0).sum()) == 1
    assert found.boxes[0, 0].tolist() == [-16, -16, 24, 24]
    assert torch.allclose(relative_boxes(found, raw, CONFIG)[0, 0], torch.tensor([0, 0, 0.25, 0.375]))


def test_the_head_starts_with_a_foreground_of_one_percent() -> None:
    head = FcosHead(replace(CONFIG, width=32), 3, extra=7)
    with torch.no_grad():
        raw = head([torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 2, 2)])
    assert raw.logits[0].sigmoid().mean().item() == pytest.approx(0.01, rel=1e-3)
    assert raw.extra[1].shape == (1, 7, 2, 2)
    assert FcosHead(replace(CONFIG, width=32, level_scales=False), 3).state_dict().keys().isdisjoint({"scales.0"})


def test_the_first_edition_reads_the_quality_beside_the_classes_and_counts_in_pixels() -> None:
    config = replace(CONFIG, width=32, distance_activation="exp")
    head = FcosHead(config, 3)
    first = replace(config, distance_unit="pixels", quality_tower="class", tower_bias=False)
    other = FcosHead(first, 3)
    other.load_state_dict({n: t for n, t in head.state_dict().items() if n in other.state_dict()})
    assert set(head.state_dict()) - set(other.state_dict()) == {
        f"{kind}_tower.{3 * i}.bias" for kind in ("class", "box") for i in range(4)
    }
    levels = [torch.randn(1, 32, 4, 4), torch.randn(1, 32, 2, 2)]
    with torch.no_grad():
        raw, found = head(levels), other(levels)
        assert torch.allclose(found.quality[0], head.quality(head.class_tower(levels[0])), atol=1e-6)
    for stride, ours, theirs in zip(CONFIG.strides, raw.distances, found.distances, strict=True):
        assert torch.allclose(ours, theirs * stride, atol=1e-5)


def test_an_input_that_levels_do_not_divide_is_refused() -> None:
    require_whole_cells(torch.zeros(1, 3, 64, 96))
    with pytest.raises(MaskkitError, match=r"--input.size 64 128"):
        require_whole_cells(torch.zeros(1, 3, 50, 100))
