"""The loaders: every batch a function of seed and step alone, whichever process makes it."""

import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from maskkit.config import AugmentConfig, DataConfig, InputConfig, ModelConfig, RunConfig, TrainConfig
from maskkit.data import loader, open_dataset, shapes
from maskkit.data.loader import collate, normalise, train_loader
from maskkit.data.transforms import apply, eval_ops, train_ops
from maskkit.errors import DataError, MaskkitError
from maskkit.prediction import ImageMeta
from maskkit.targets import Target, TargetMasks
from maskkit.zoo import preset

DATASET = shapes.shapes_dataset(11, size=(48, 64), objects=(0, 4))
CONFIG = RunConfig(
    "none",
    ModelConfig(),
    InputConfig((32, 32)),
    AugmentConfig(copy_paste=0.5),
    TrainConfig(batch=4, workers=0, seed=3),
)


SIZES = ((30, 50), (80, 20), (33, 47))


def masks_of(target: Target) -> TargetMasks:
    assert target.masks is not None
    return target.masks


def with_train(**changes):
    return replace(CONFIG, train=replace(CONFIG.train, **changes))


def same(a, b):
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.sizes, b.sizes)
    for x, y in zip(a.targets, b.targets, strict=True):
        assert torch.equal(x.boxes, y.boxes)
        assert torch.equal(x.labels, y.labels)
        assert torch.equal(masks_of(x).dense(), masks_of(y).dense())
        assert torch.equal(x.has_mask, y.has_mask)
    for x, y in zip(a.metas, b.metas, strict=True):
        assert x.image_id == y.image_id
        np.testing.assert_array_equal(x.affine, y.affine)


@pytest.fixture(scope="module")
def batches():
    return list(train_loader(DATASET, CONFIG, 0, 8))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_make_the_same_batches(batches, workers):
    found = list(train_loader(DATASET, with_train(workers=workers), 0, 8))
    assert len(found) == 8
    for a, b in zip(found, batches, strict=True):
        same(a, b)


def test_a_resumed_run_sees_the_same_batches(batches):
    for a, b in zip(train_loader(DATASET, CONFIG, 5, 8), batches[5:], strict=True):
        same(a, b)
    assert list(train_loader(DATASET, CONFIG, 8, 8)) == []


def test_processes_share_a_batch(batches):
    shares = [list(train_loader(DATASET, CONFIG, 0, 8, rank, 2)) for rank in range(2)]
    for step, whole in enumerate(batches):
        assert [len(share[step]) for share in shares] == [2, 2]
        for rank, share in enumerate(shares):
            assert torch.equal(share[step].images, whole.images[rank::2])
            assert [m.image_id for m in share[step].metas] == [m.image_id for m in whole.metas][rank::2]


def test_an_epoch_is_every_image_once(batches):
    ids = [m.image_id for batch in batches for m in batch.metas]
    assert len(ids) == 32
    first, second = ids[:11], ids[11:22]
    assert sorted(first) == sorted(second) == list(range(1, 12))
    assert first != second
    other = [m.image_id for b in train_loader(DATASET, with_train(seed=4), 0, 3) for m in b.metas]
    assert other[:11] != first


def test_the_same_image_is_changed_anew_in_every_epoch(batches):
    images = [(m.image_id, image) for b in batches for m, image in zip(b.metas, b.images, strict=True)]
    for number in range(1, 12):
        first, second = [image for i, image in images if i == number][:2]
        assert not torch.equal(first, second)


def test_a_batch_may_be_larger_than_the_data_set():
    (batch,) = train_loader(DATASET.subset([0, 1]), with_train(batch=5), 0, 1)
    assert sorted(m.image_id for m in batch.metas[:4]) == [1, 1, 2, 2]
    assert len(batch) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_one_clear_error(tmp_path, workers):
    folder = shapes.write(tmp_path / "drawn", train=4, val=1, size=(32, 32))
    bad = folder / "images" / "00003.jpg"
    dataset = open_dataset(folder, "train")
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(DataError, match=r"00003\.jpg") as caught:
        list(train_loader(dataset, with_train(workers=workers), 0, 2))
    assert "Traceback" not in str(caught.value)


def test_errors_before_the_first_batch():
    with pytest.raises(DataError, match="no image"):
        train_loader(DATASET.subset([]), CONFIG, 0, 1)
    with pytest.raises(DataError, match="copy-paste"):
        train_loader(DATASET, replace(CONFIG, data=DataConfig(labels="boxes")), 0, 1)
    with pytest.raises(MaskkitError, match=r"train\.batch"):
        train_loader(DATASET, CONFIG, 0, 1, rank=0, world=5)


@pytest.mark.parametrize("labels", ["boxes", "tags"])
def test_weak_labels(labels):
    config = replace(CONFIG, data=DataConfig(labels=labels), augment=AugmentConfig())
    (batch,) = train_loader(DATASET, config, 0, 1)
    for target in batch.targets:
        assert target.masks is None
        assert (target.tags is not None) == (labels == "tags")


def test_a_batch_knows_the_progress_and_gives_its_pixels_back():
    given = list(train_loader(DATASET, CONFIG, 0, 4))
    assert [b.progress for b in given] == [0.25, 0.5, 0.75, 1]
    pixels = given[0].pixels()
    assert pixels.min() >= -1e-3
    assert 200 < pixels.max() < 256.001
    assert next(iter(train_loader(DATASET, CONFIG, 2, 4))).progress == 0.75


def test_shorter_pads_even_a_single_image_to_a_multiple_of_32():
    image, target = shapes.draw(1, (40, 50), (1, 2))
    meta = ImageMeta(1, "", (40, 50), (40, 50))
    given = InputConfig(size=(70, 100), resize="shorter")
    batch = collate([apply(eval_ops(given), (image, target, meta), np.random.default_rng(0))], given)
    assert batch.images.shape == (1, 3, 96, 96)
    assert batch.sizes.tolist() == [[70, 88]]
    assert batch.valid.sum() == 70 * 88
    assert batch.metas[0].input_size == (96, 96)


@pytest.mark.parametrize("seed", range(8))
def test_sizes_are_the_extent_of_each_image_with_the_augmentation_of_eva(seed):
    """The field that scale jitter adds is of the mean colour, thus zero after normalisation, and yet no padding."""
    recipe = preset("eva-giant-1280")
    given, augment = replace(recipe.input, size=(128, 128)), replace(recipe.augment, canvas=(128, 128))
    dataset = shapes.shapes_dataset(3, seed, size=(96, 150))
    samples = [apply(train_ops(augment, given), dataset.load(i), np.random.default_rng([seed, i])) for i in range(3)]
    batch = collate(samples, given)
    for sizes, valid, found, (image, _, meta) in zip(batch.sizes, batch.valid, batch.images, samples, strict=True):
        assert tuple(sizes.tolist()) == meta.input_size == tuple(image.shape[1:]) == (128, 128)
        assert valid.all()
        assert torch.equal(found, normalise(image, given))
        place = np.linalg.inv(np.vstack([meta.affine, [0, 0, 1]]))  # of the original image in the input
        (x1, x2), (y1, y2) = np.sort((place @ [[0, 150], [0, 96], [1, 1]])[:2], axis=1).round(6)
        inside = np.zeros((128, 128), bool)
        inside[max(0, round(y1)) : max(0, round(y2)), max(0, round(x1)) : max(0, round(x2))] = True
        assert not found[:, ~inside].any(), "only the field around the image is zero"


@pytest.mark.parametrize("mode", ["stretch", "pad", "shorter"])
def test_sizes_are_the_extent_of_each_resized_image(mode):
    given = InputConfig((64, 128), mode, mean=(0, 0, 0), std=(1, 1, 1))
    white = [(torch.full((3, h, w), 255.0), Target.of([], []), ImageMeta(1, "", (h, w), (h, w))) for h, w in SIZES]
    batch = collate([apply(eval_ops(given), sample, np.random.default_rng(0)) for sample in white], given)
    assert torch.equal(batch.valid, batch.images[:, 0] > 0)
    for sizes, image in zip(batch.sizes, batch.images, strict=True):
        extent = [int(image[0].any(1).sum()), int(image[0].any(0).sum())]
        assert sizes.tolist() == extent


def test_normalise():
    given = InputConfig(mean=(10, 20, 30), std=(2, 4, 5))
    image = torch.tensor([12, 24, 25], dtype=torch.uint8).view(3, 1, 1)
    assert normalise(image, given).flatten().tolist() == [1, 1, -1]
    assert image.flatten().tolist() == [12, 24, 25]


class TestCollate:
    given = InputConfig(mean=(100, 100, 100), std=(50, 50, 50))

    def sample(self, size, inside=None):
        target = Target.of([[0, 0, 2, 2]], [0], torch.ones(1, *size), semantic=torch.zeros(size, dtype=torch.uint8))
        return torch.full((3, *size), 200.0), target, ImageMeta(1, "", size, inside or size)

    def test_equal_sizes_are_not_padded(self):
        batch = collate([self.sample((30, 50)), self.sample((30, 50))], self.given)
        assert batch.images.shape == (2, 3, 30, 50)
        assert (batch.images == 2).all()
        assert batch.valid.all()

    def test_different_sizes_are_padded_to_a_multiple_of_32(self):
        batch = collate([self.sample((30, 50)), self.sample((40, 20))], self.given)
        assert batch.images.shape == (2, 3, 64, 64)
        assert batch.sizes.tolist() == [[30, 50], [40, 20]]
        assert batch.valid.sum((1, 2)).tolist() == [30 * 50, 40 * 20]
        assert (batch.images == 2 * batch.valid[:, None]).all()
        for target, valid in zip(batch.targets, batch.valid, strict=True):
            assert torch.equal(masks_of(target).dense()[0], valid)
            assert target.semantic is not None
            assert torch.equal(target.semantic == 0, valid)
            assert (target.semantic[~valid] == 255).all()

    def test_the_padding_of_the_resize_is_not_valid_and_zero(self):
        batch = collate([self.sample((32, 32), inside=(20, 32))], self.given)
        assert batch.valid[0, :20].all()
        assert not batch.valid[0, 20:].any()
        assert not batch.images[0, :, 20:].any()

    def test_no_objects_and_no_masks(self):
        image, _, meta = self.sample((32, 32))
        targets = Target.of([], []), Target.of([], [], torch.zeros(0, 32, 32))
        batch = collate([(image, target, meta) for target in targets], self.given)
        assert batch.targets[0].masks is None
        assert masks_of(batch.targets[1]).dense().shape == (0, 32, 32)


# loader processes ------------------------------------------------------------------------------------------------


class Large:
    """Batches of 4 MB, made where the system allows files, and so shared memory, of ``limit`` bytes."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        if self.limit is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return {"a": torch.full((1_000_000,), float(step)), "b": torch.arange(3)}


def test_small_shared_memory_is_said_once_and_does_not_hang() -> None:
    """torch moves tensors to shared memory in a thread whose errors nobody sees: the training waited for ever."""
    said: list[str] = []
    found = list(loader.batches(Large(limit=100_000), range(5), 2, said.append))
    assert [float(batch["a"][-1]) for batch in found] == [0, 1, 2, 3, 4]
    assert all(torch.equal(batch["b"], torch.arange(3)) for batch in found)
    assert len(said) == 1
    assert "--shm-size" in said[0]


def test_shared_memory_is_used_where_there_is_enough() -> None:
    said: list[str] = []
    found = list(loader.batches(Large(), range(3), 2, said.append))
    assert all(batch["a"].is_shared() for batch in found)
    assert [float(batch["a"][0]) for batch in found] == [0, 1, 2]
    assert said == []


def test_loader_processes_do_not_see_ctrl_c_and_end_with_the_loop() -> None:
    before = set(multiprocessing.active_children())
    found = loader.batches(Large(), range(50), 2)
    next(found)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)  # type: ignore[arg-type]
    assert float(next(found)["a"][0]) == 1
    assert float(next(found)["a"][0]) == 2
    found.close()
    for worker in workers:
        worker.join(20)
        assert worker.exitcode == 0


class Refused:
    """A file that the system does not give."""

    def __getitem__(self, step: int) -> int:
        raise OSError(5, "Input/output error", "photo.jpg")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_system_names_the_image(workers: int) -> None:
    with pytest.raises(MaskkitError, match=r"^photo.jpg: Input/output error; the disk or the network"):
        list(loader.batches(Refused(), range(2), workers))
