"""Transforms: geometry by tracking, pixels and colours against torchvision, and the rules of SSD and copy-paste."""

import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torchvision.transforms.v2 import functional as TF
from torchvision.tv_tensors import BoundingBoxFormat

from maskkit.config import AugmentConfig, InputConfig
from maskkit.data import shapes
from maskkit.data.transforms import (
    CopyPaste,
    CropObject,
    DropSmall,
    Expand,
    Flip,
    IoUCrop,
    Photometric,
    Resize,
    Sample,
    ScaleJitter,
    Shrink,
    VerticalFlip,
    apply,
    eval_ops,
    train_ops,
)
from maskkit.data.transforms.photometric import _recolour
from maskkit.geometry import boxes as box_math
from maskkit.prediction import ImageMeta
from maskkit.targets import DenseMasks, Target, TargetMasks

FAR = -1000.0  # a fill that no interpolation can hide


def masks_of(target: Target) -> TargetMasks:
    assert target.masks is not None
    return target.masks


def meta_of(image):
    size = (image.shape[1], image.shape[2])
    return ImageMeta(7, "drawn", size, size)


def drawn(seed=0, **options) -> Sample:
    image, target = shapes.draw(seed, (90, 120), **options)
    return image, target, meta_of(image)


def blocks(*corners: tuple[int, int, int, int], size=(40, 60), image=None) -> Sample:
    """A sample with filled rectangles x1 y1 x2 y2; labels are their positions."""
    dense = torch.zeros(len(corners), *size, dtype=torch.bool)
    for layer, (x1, y1, x2, y2) in zip(dense, corners, strict=True):
        layer[y1:y2, x1:x2] = True
    image = torch.zeros(3, *size, dtype=torch.uint8) if image is None else image
    return image, Target.of(list(corners), range(len(corners)), dense), meta_of(image)


sizes = st.tuples(st.integers(8, 60), st.integers(8, 60))
fill = (FAR, FAR, FAR)
operations = st.one_of(
    st.builds(Resize, sizes),
    st.builds(Flip, st.just(1.0)),
    st.builds(VerticalFlip, st.just(1.0)),
    st.builds(Expand, st.just(3.0), st.just(fill), st.just(1.0)),
    st.just(IoUCrop()),
    st.builds(ScaleJitter, st.just((0.4, 2.0)), sizes, st.sampled_from(["stretch", "pad"]), st.just(fill)),
)
chains = st.lists(operations, min_size=1, max_size=5)


@settings(deadline=None, max_examples=100)
@given(chains, sizes, st.integers(0, 2**32 - 1))
def test_the_affine_says_where_every_pixel_mask_and_box_comes_from(chain, size, seed):
    """After each step the image, sampled by scipy where the affine points to, is the new image, and so on."""
    height, width = size
    rng = np.random.default_rng(seed)
    corners = [(0, 0, width, height), (1, 2, 6, 8), (width - 4, 0, width, height // 2)]
    sample = blocks(*corners, size=size, image=torch.from_numpy(rng.uniform(0, 255, (3, height, width))).float())
    for op in chain:
        image, target, meta = sample
        found, moved, after = sample = op(*sample, rng)
        assert after.size == size
        step = np.linalg.solve(np.vstack([meta.affine, [0, 0, 1]]), np.vstack([after.affine, [0, 0, 1]]))
        y, x = np.mgrid[: found.shape[1], : found.shape[2]] + 0.5
        x, y, _ = step @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
        inside = (x > 0) & (x < image.shape[2]) & (y > 0) & (y < image.shape[1])

        def look(plane, outside, at=(y - 0.5, x - 0.5), inside=inside, shape=found.shape[1:]):
            values = ndimage.map_coordinates(plane.numpy().astype(float), at, order=1, mode="nearest")
            return np.where(inside, values, outside).reshape(shape)

        for new, old in zip(found, image, strict=True):
            np.testing.assert_allclose(new, look(old, FAR), atol=0.05)

        kept = [target.labels.tolist().index(label) for label in moved.labels.tolist()]
        for new, old in zip(masks_of(moved).dense().numpy(), masks_of(target).dense()[kept], strict=True):
            values = look(old, 0)
            np.testing.assert_array_equal(new[abs(values - 0.5) > 1e-3], (values > 0.5)[abs(values - 0.5) > 1e-3])

        low, high = (target.boxes.numpy()[:, i : i + 2] - step[:2, 2] for i in (0, 2))
        edges = np.sort(np.stack([low, high], 1) / np.diag(step)[:2], axis=1).reshape(-1, 4)
        wanted = np.clip(edges, 0, np.tile(found.shape[:0:-1], 2))
        np.testing.assert_allclose(moved.boxes, wanted[kept], atol=1e-3)
        if not isinstance(op, IoUCrop):
            for i in set(range(len(target))) - set(kept):  # only what is no longer seen is gone
                x1, y1, x2, y2 = wanted[i]
                assert min(x2 - x1, y2 - y1) < 1e-3 or look(masks_of(target).dense()[i], 0).max() <= 0.501


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_masks_go_where_the_pixels_go(seed):
    """One object painted white: after SSD's chain its mask is what is white in the image."""
    image, target, meta = drawn(5, objects=(1, 1))
    image = masks_of(target).dense().float().expand(3, -1, -1) * 255
    ops = [Expand(3, (0, 0, 0)), IoUCrop(), Flip(), VerticalFlip(), Resize((50, 70))]
    image, target, _ = apply(ops, (image, target, meta), np.random.default_rng(seed))
    white = (image[0] - 127.5).abs() > 0.01
    for mask in masks_of(target).dense():
        assert torch.equal(mask[white], (image[0] > 127.5)[white])
    assert len(target) == 1 or not (image[0] > 127.5).any()


@pytest.mark.parametrize("size", [(20, 30), (64, 64), (200, 100), (90, 120), (1, 1)])
def test_resize_is_torch_interpolation(size):
    image, target, meta = drawn()
    found, scaled, after = Resize(size)(image, target, meta, np.random.default_rng(0))
    wanted = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
    assert (found - wanted).abs().max() < 1e-3
    assert after.input_size == size
    kept = scaled.labels.tolist()
    dense = masks_of(target).dense(size)
    assert torch.equal(masks_of(scaled).dense(), dense[dense.any((1, 2))])
    assert len(kept) == dense.any((1, 2)).sum()
    smooth, _, _ = Resize(size, antialias=True)(image, target, meta, np.random.default_rng(0))
    wanted = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    assert (smooth - wanted).abs().max() < 1.2, "Pillow rounds after each of the two directions"
    smooth, _, _ = Resize(size, antialias=True)(image.float(), target, meta, np.random.default_rng(0))
    assert (smooth - wanted).abs().max() < 1e-3
    rounded, _, _ = Resize(size, interpolation="cv2")(image, target, meta, np.random.default_rng(0))
    assert torch.equal(rounded, rounded.round())
    assert (rounded - found).abs().max() < 1.01
    kept_float, _, _ = Resize(size, interpolation="cv2")(image.float(), target, meta, np.random.default_rng(0))
    assert torch.equal(kept_float, Resize(size)(image.float(), target, meta, np.random.default_rng(0))[0])


def test_large_images_are_shrunk_first():
    image, target, meta = drawn()
    rng = np.random.default_rng(0)
    assert Shrink(120)(image, target, meta, rng)[0] is image
    found, scaled, after = Shrink(60)(image, target, meta, rng)
    assert found.shape == (3, 45, 60)
    assert found.dtype == torch.uint8
    assert masks_of(scaled).size == (45, 60) == after.input_size
    np.testing.assert_allclose(after.to_original(scaled.boxes.numpy()), target.boxes.numpy(), atol=1e-3)


@pytest.mark.parametrize(("size", "inside"), [((60, 60), (45, 60)), ((50, 400), (50, 67)), ((90, 120), (90, 120))])
def test_pad_keeps_the_aspect_ratio(size, inside):
    image, target, meta = drawn()
    found, padded, after = Resize(size, "pad")(image, target, meta, np.random.default_rng(0))
    assert found.shape[1:] == size == masks_of(padded).size
    assert after.input_size == inside
    assert not found[:, inside[0] :].any()
    assert not found[:, :, inside[1] :].any()
    scale = np.diag(after.affine[:, :2])
    np.testing.assert_allclose(scale, [120 / inside[1], 90 / inside[0]])
    np.testing.assert_allclose(after.to_original(padded.boxes.numpy()), target.boxes.numpy(), atol=1e-3)


def sample(height: int, width: int) -> Sample:
    image, target = shapes.draw(1, (height, width), (1, 2))
    return image, target, ImageMeta(1, "", (height, width), (height, width))


@pytest.mark.parametrize(
    ("have", "want"), [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((300, 900), (444, 1333))]
)
def test_shorter_side_unless_the_longer_one_grows_too_long(have, want):
    image, target, meta = sample(*have)
    image, target, meta = Resize((800, 1333), "shorter")(image, target, meta, np.random.default_rng(0))
    assert tuple(image.shape[1:]) == meta.input_size == want


def test_multi_scale_takes_one_of_the_short_sides():
    op, rng = Resize((800, 1333), "shorter", short_sides=(64, 80)), np.random.default_rng(0)
    assert {op(*sample(40, 50), rng)[0].shape[1] for _ in range(20)} == {64, 80}


def test_objects_without_a_known_mask_stay_while_their_box_is_seen():
    image, target, meta = blocks((0, 0, 20, 20), (30, 30, 40, 40), (0, 0, 20, 20))
    unseen = DenseMasks(torch.zeros(3, 40, 60, dtype=torch.bool))
    target = replace(target, has_mask=torch.tensor([False, False, True]), masks=unseen)
    for op in (Resize((20, 20)), Expand(3, (0, 0, 0), p=1), ScaleJitter((0.9, 0.9), (40, 40))):
        assert op(image, target, meta, np.random.default_rng(0))[1].labels.tolist() == [0, 1]


def test_flips_are_torchvisions():
    image, target, meta = drawn()
    rng = np.random.default_rng(0)
    for op, flip, boxes, masks in (
        (Flip(1.0), TF.horizontal_flip, TF.horizontal_flip_bounding_boxes, TF.horizontal_flip_mask),
        (VerticalFlip(1.0), TF.vertical_flip, TF.vertical_flip_bounding_boxes, TF.vertical_flip_mask),
    ):
        found, turned, _ = op(image, replace(target, semantic=image[0]), meta, rng)
        assert torch.equal(found, flip(image))
        assert turned.semantic is not None
        assert torch.equal(turned.semantic, flip(image[0]))
        assert torch.equal(turned.boxes, boxes(target.boxes, BoundingBoxFormat.XYXY, (90, 120)))
        assert torch.equal(masks_of(turned).dense(), masks(masks_of(target).dense()))
        assert torch.equal(op(*op(image, target, meta, rng), rng)[0], image)
    assert Flip(0.0)(image, target, meta, rng)[0] is image


class TestPhotometric:
    def test_grey_stays_grey_and_bytes_stay_bytes(self):
        image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)
        op = Photometric(brightness=0, contrast=(1, 1))
        for seed in range(20):
            found, _, _ = op(image, Target.of([], []), meta_of(image), np.random.default_rng(seed))
            assert found.dtype == torch.uint8
            assert (found.int() - image.int()).abs().max() <= 1

    @pytest.mark.parametrize(("saturation", "angle"), [(1.4, 0), (0.6, 0), (1, 18), (1, -18), (1.3, 9), (0.5, -12)])
    def test_saturation_and_hue_are_those_of_hsv(self, saturation, angle):
        rng = np.random.default_rng(0)
        image = torch.from_numpy(rng.integers(0, 256, (3, 20, 20), np.uint8))
        image[:, 0] = image[0, 0]  # grey
        image[:, 1] = 0
        wanted = torch.empty(3, 20, 20)
        for y, x in np.ndindex(20, 20):
            h, s, v = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
            # Beyond a saturation of 1 a channel is negative, which HSV cannot say but its formula can.
            pure = np.array(colorsys.hsv_to_rgb((h + angle / 360) % 1, 1, 1))
            wanted[:, y, x] = torch.from_numpy(v * (1 - s * saturation * (1 - pure)))
        assert (_recolour(image.float(), saturation, angle / 60) - wanted).abs().max() < 1e-3

    def test_each_part_comes_in_half_of_the_images(self):
        image, target, meta = drawn()
        nothing = Photometric(brightness=0, contrast=(1, 1), saturation=(1, 1), hue=0)
        for only in ({"brightness": 32.0}, {"contrast": (0.5, 1.5)}, {"saturation": (0.5, 1.5)}, {"hue": 18.0}):
            op = replace(nothing, **only)
            same = [torch.equal(op(image, target, meta, np.random.default_rng(s))[0], image) for s in range(100)]
            assert 30 < sum(same) < 70

    def test_brightness_and_contrast_lie_in_the_ranges_of_ssd(self):
        image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
        op = Photometric(saturation=(1, 1), hue=0)
        values = np.array(
            [op(image, Target.of([], []), meta_of(image), np.random.default_rng(s))[0][0, 0, 0] for s in range(300)]
        )
        assert values.min() >= 34  # (100 - 32) * 0.5
        assert values.max() <= 198  # (100 + 32) * 1.5
        assert values.min() < 50
        assert values.max() > 170
        assert 40 < (values == 100).sum() < 120  # a quarter has neither

    def test_geometry_is_left_alone(self):
        image, target, meta = drawn()
        _, found, after = Photometric()(image, target, meta, np.random.default_rng(1))
        assert found is target
        assert after is meta


class TestExpand:
    def test_the_image_lies_whole_in_a_field_of_colour(self):
        image, target, meta = drawn()
        for seed in range(10):
            found, moved, after = Expand(4, (10, 20, 30), p=1)(image, target, meta, np.random.default_rng(seed))
            x, y = (-after.affine[:, 2]).astype(int)
            assert torch.equal(found[:, y : y + 90, x : x + 120], image)
            assert torch.equal(masks_of(moved).dense()[:, y : y + 90, x : x + 120], masks_of(target).dense())
            assert torch.equal(moved.boxes - target.boxes, torch.tensor([x, y, x, y]).expand(len(target), 4).float())
            found[:, y : y + 90, x : x + 120] = torch.tensor([10, 20, 30])[:, None, None]
            assert (found == torch.tensor([10, 20, 30])[:, None, None]).all()
            assert 1 <= found.shape[1] / 90 <= 4.01

    def test_the_field_is_bounded(self):
        image = torch.full((3, 300, 400), 200, dtype=torch.uint8)
        target = Target.of([[0, 0, 400, 300]], [0], torch.ones(1, 300, 400))
        for seed in range(10):
            found, moved, after = Expand(4, (0, 0, 0), p=1, limit=450)(
                image, target, meta_of(image), np.random.default_rng(seed)
            )
            assert max(found.shape) <= 450 + 4  # the shrunk side is a whole number
            assert found.dtype == torch.uint8
            assert torch.equal(masks_of(moved).dense()[0], found[0] == 200)
            np.testing.assert_allclose(after.to_original(moved.boxes.numpy()), [[0, 0, 400, 300]], atol=1e-3)

    def test_what_is_not_known_is_ignored(self):
        image, target, meta = drawn()
        target = replace(target, semantic=torch.zeros(90, 120, dtype=torch.uint8))
        _, moved, _ = Expand(2, (0, 0, 0), p=1)(image, target, meta, np.random.default_rng(0))
        assert moved.semantic is not None
        assert (moved.semantic == 0).sum() == 90 * 120
        assert (moved.semantic == 255).sum() == moved.semantic.numel() - 90 * 120


class TestIoUCrop:
    @pytest.mark.parametrize("demand", [0.0, 0.3, 0.7])
    def test_demand_is_met_and_centres_stay(self, demand, monkeypatch):
        monkeypatch.setattr(IoUCrop, "DEMANDS", (demand, demand, None))
        sample = blocks((5, 5, 45, 35), (50, 2, 58, 10), (20, 30, 24, 38))
        cropped = 0
        for seed in range(60):
            image, target, meta = IoUCrop()(*sample, np.random.default_rng(seed))
            height, width = image.shape[1:]
            if (height, width) == (40, 60):
                continue
            cropped += 1
            assert height >= math.floor(0.3 * 40)
            assert width >= math.floor(0.3 * 60)
            assert 0.5 <= height / width <= 2
            x, y = meta.affine[:, 2]
            crop = torch.tensor([[x, y, x + width, y + height]]).float()
            assert box_math.iou(crop, sample[1].boxes).max() >= demand
            centres = box_math.to_centres(sample[1].boxes)[:, :2]
            inside = ((centres > crop[0, :2]) & (centres < crop[0, 2:])).all(1)
            assert target.labels.tolist() == inside.nonzero()[:, 0].tolist()
            assert len(target) >= 1
            box = sample[1].boxes[inside] - torch.tensor([x, y, x, y]).float()
            limits = torch.tensor([width, height, width, height])
            assert torch.equal(target.boxes, box.clamp(min=0).minimum(limits))
            assert torch.equal(masks_of(target).boxes(), target.boxes)
        assert cropped > 10

    def test_images_without_objects_are_cropped_too(self):
        sample = blocks()
        assert len({IoUCrop()(*sample, np.random.default_rng(s))[0].shape for s in range(20)}) > 5

    def test_crowds_stay_in_sight_and_have_no_say(self):
        image, target, meta = blocks((0, 0, 60, 40), (22, 14, 30, 22))
        target = replace(target, crowd=torch.tensor([True, False]))
        for seed in range(30):
            found, seen, _ = IoUCrop()(image, target, meta, np.random.default_rng(seed))
            assert seen.labels.tolist() == [0, 1]
            assert seen.boxes[0].tolist() == [0, 0, found.shape[2], found.shape[1]]

    def test_a_very_long_image_ends(self):
        sample = blocks((0, 0, 4, 4), size=(4, 400))
        for seed in range(5):
            assert IoUCrop()(*sample, np.random.default_rng(seed))[0].shape == (3, 4, 400)


class TestCopyPaste:
    def paste(self, sample: Sample, partner: Sample, seed=0, **options) -> Sample:
        image, target, meta = sample
        return CopyPaste(1.0, lambda _: partner, **options)(image, target, meta, np.random.default_rng(seed))

    def test_guests_are_on_top_and_hosts_are_cut(self):
        white = torch.full((3, 90, 120), 255, dtype=torch.uint8)
        pasted = 0
        for seed in range(30):
            image, target, meta = drawn(seed, crowd=True)
            image = image.clamp(max=250)
            partner = (white, drawn(100 + seed)[1], meta)
            found, joined, after = self.paste((image, target, meta), partner, seed)
            guests = (found == 255).all(0)
            pasted += bool(guests.any())
            assert torch.equal(found[:, ~guests], image[:, ~guests])
            dense, free = masks_of(joined).dense(), ~joined.crowd
            is_guest = (dense & guests).any((1, 2)) | (~dense).all((1, 2))
            assert torch.equal(dense[is_guest].any(0), guests)
            assert not (dense[~is_guest] & guests).any()
            assert torch.equal(joined.boxes[free], masks_of(joined).boxes()[free])
            assert joined.crowd.sum() == target.crowd.sum()
            assert after is meta
            hosts = masks_of(target).dense() & ~guests
            for mask in dense[~is_guest]:  # what is left is an original without the guests
                assert (hosts == mask).all((1, 2)).any()
        assert pasted > 20

    def test_what_is_hidden_goes(self):
        host = blocks((10, 10, 14, 14), (0, 0, 60, 40))
        box_only = replace(host[1], has_mask=torch.tensor([False, True]))
        everything = blocks((0, 0, 60, 40), image=torch.full((3, 40, 60), 9, dtype=torch.uint8))
        seeds = range(8)
        for target in (host[1], box_only):
            sample = (host[0], target, host[2])
            found = [self.paste(sample, everything, s, scale=(1.0, 1.0))[1].labels.tolist() for s in seeds]
            assert [0] in found  # the guest alone
            assert all(labels in ([0], [0, 1]) for labels in found)

    def test_only_known_masks_come_over(self):
        host, guest = blocks((1, 1, 5, 5)), blocks((0, 0, 30, 30), (5, 5, 20, 20))
        for change in ({"has_mask": torch.zeros(2, dtype=torch.bool)}, {"crowd": torch.ones(2, dtype=torch.bool)}):
            partner = (guest[0], replace(guest[1], **change), guest[2])
            for seed in range(5):
                assert self.paste(host, partner, seed)[1] is host[1]
        without = (guest[0], Target.of(guest[1].boxes, guest[1].labels), guest[2])
        assert self.paste(host, without)[1] is host[1]

    def test_a_host_without_masks_learns_them_from_guests_alone(self):
        host = (torch.zeros(3, 40, 60, dtype=torch.uint8), Target.of([[50, 30, 60, 40]], [3]), META)
        found = [self.paste(host, blocks((0, 0, 20, 20)), s, scale=(0.5, 0.5))[1] for s in range(12)]
        assert any(t.has_mask.tolist() == [False, True] for t in found)
        for target in found:
            if target.masks is not None:
                assert torch.equal(masks_of(target).areas() > 0, target.has_mask)


def test_scale_jitter_zooms_both_ways():
    image, target, meta = drawn()
    scales = []
    for seed in range(30):
        op = ScaleJitter((0.5, 2.0), (64, 64), "pad", (1, 2, 3))
        found, moved, after = op(image, target, meta, np.random.default_rng(seed))
        assert found.shape == (3, 64, 64)
        assert masks_of(moved).size == (64, 64) == after.input_size
        scales.append(after.affine[0, 0])
        if not len(moved):
            continue
        assert (moved.boxes >= 0).all()
        assert (moved.boxes <= 64).all()
    assert min(scales) < 1.3  # 120 / 64 / 2 = 0.94
    assert max(scales) > 2.6  # 120 / 64 * 2 = 3.75


@given(st.integers(0, 1000), st.integers(5, 130), st.integers(5, 130))
def test_a_crop_holds_one_object_whole(seed: int, height: int, width: int):
    image, target, meta = drawn(seed % 20)
    found, seen, after = CropObject((height, width))(image, target, meta, np.random.default_rng(seed))
    size = min(height, image.shape[1]), min(width, image.shape[2])
    assert found.shape[1:] == size
    back = torch.from_numpy(after.to_original(seen.boxes.numpy()))
    whole = [any(torch.allclose(b, box) for b in back) for box in target.boxes]
    fits = (target.boxes[:, 2:] - target.boxes[:, :2] <= torch.tensor([width, height])).all(1)
    assert any(whole) or not fits.all()
    for box, label in zip(back, seen.labels, strict=True):
        x1, y1, x2, y2 = box.round().int().tolist()
        assert torch.equal(image[:, y1:y2, x1:x2], crop_of(found, after, (x1, y1, x2, y2)))
        assert int(label) in target.labels.tolist()


def crop_of(image: torch.Tensor, meta, box: tuple[int, int, int, int]) -> torch.Tensor:
    """The pixels of a box of the original image, in an image that was only cropped."""
    x, y = (int(v) for v in meta.affine[:, 2])
    x1, y1, x2, y2 = box
    return image[:, y1 - y : y2 - y, x1 - x : x2 - x]


def test_small_objects_are_dropped_and_crowds_kept():
    image, target, meta = blocks((0, 0, 20, 20), (1, 1, 2, 9), (1, 1, 9, 2), (5, 5, 6, 6))
    target = replace(target, crowd=torch.tensor([False, False, False, True]))
    _, found, _ = DropSmall(0.05)(image, target, meta, np.random.default_rng(0))
    assert found.labels.tolist() == [0, 3]


EVERYTHING = AugmentConfig(copy_paste=0.7, vertical_flip=0.5)
IMAGE, OBJECTS, META = drawn(5)
CASES = {
    "objects": drawn(1),
    "crowd": drawn(2, crowd=True),
    "crowd only": drawn(2, crowd=True, objects=(0, 0)),
    "box-only": drawn(3, box_only=0.5),
    "nothing": drawn(4, objects=(0, 0)),
    "no masks": (IMAGE, Target.of(OBJECTS.boxes, OBJECTS.labels), META),
    "tags": (IMAGE, Target.of([], [], tags=torch.ones(5)), META),
    "one pixel": blocks((0, 0, 1, 1), size=(1, 1)),
    "semantic": (IMAGE, replace(OBJECTS, semantic=torch.zeros(90, 120, dtype=torch.uint8)), META),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("jitter", [None, (0.3, 2.0)])
def test_every_kind_of_target_passes_the_whole_chain(case, resize, jitter):
    image, target, meta = CASES[case]
    before = image.clone(), target.boxes.clone()
    ops = train_ops(replace(EVERYTHING, scale_jitter=jitter), InputConfig((64, 96), resize), lambda _: drawn(9))
    for seed in range(8):
        found, seen, after = apply(ops, (image, target, meta), np.random.default_rng(seed))
        again, same, _ = apply(ops, (image, target, meta), np.random.default_rng(seed))
        assert torch.equal(found, again)
        assert torch.equal(seen.boxes, same.boxes)
        assert found.shape == (3, 64, 96)
        assert torch.isfinite(found).all()
        assert len(seen) == len(seen.labels) == len(seen.crowd) == len(seen.has_mask)
        assert (seen.boxes[:, 2:] > seen.boxes[:, :2]).all()
        assert (seen.boxes >= 0).all()
        assert (seen.boxes <= torch.tensor([96, 64, 96, 64])).all()
        assert after.size == meta.size
        if seen.masks is not None:
            areas = DenseMasks(masks_of(seen).dense()).areas()
            assert len(areas) == len(seen)
            assert (areas > 0)[seen.has_mask & ~seen.crowd].all()
            assert (areas == 0)[~seen.has_mask].all()
        if target.semantic is not None:
            assert seen.semantic is not None
            assert seen.semantic.shape == (64, 96)
            assert set(seen.semantic.unique().tolist()) <= {0, 255}
        if target.tags is not None:
            assert seen.tags is target.tags
    assert torch.equal(image, before[0])
    assert torch.equal(target.boxes, before[1])


def test_config_chooses_the_operations():
    nothing = AugmentConfig(photometric=False, expand=1, iou_crop=False, flip=0)
    to = InputConfig((10, 20), "pad")
    names = lambda ops: [type(op).__name__ for op in ops]  # noqa: E731
    assert names(train_ops(nothing, to)) == ["Shrink", "Resize", "DropSmall"]
    full = train_ops(EVERYTHING, to, lambda _: drawn())
    order = ["Shrink", "CopyPaste", "Photometric", "Expand", "IoUCrop", "Flip", "VerticalFlip", "Resize", "DropSmall"]
    assert names(full) == order
    assert names(train_ops(replace(nothing, scale_jitter=(0.5, 2)), to)) == ["Shrink", "ScaleJitter", "DropSmall"]
    cropped = train_ops(replace(nothing, crop=(8, 8), canvas=(30, 40)), to)
    assert names(cropped) == ["CropObject", "Shrink", "Resize", "CropOrPad", "DropSmall"]
    jitter = train_ops(replace(nothing, scale_jitter=(0.5, 2), canvas=(30, 40)), InputConfig((10, 20), "shorter"))[1]
    assert jitter == ScaleJitter((0.5, 2), (30, 40), "pad", to.surround)
    assert eval_ops(to) == [Resize((10, 20), "pad")]
    with pytest.raises(ValueError, match="partner"):
        train_ops(EVERYTHING, to)
