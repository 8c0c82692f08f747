"""Samples of a data set: which images, how large, with what drawn."""

from PIL import Image

from maskkit.data import open_dataset
from maskkit.infer import samples
from tests.data.written import image_row, object_row, write_coco, write_image


def test_samples_show_the_objects(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_SIDE", 30)
    for i in (1, 2):
        write_image(tmp_path / "images" / f"{i}.png", i)
    file = write_coco(tmp_path / "train.json", [object_row(1)], images=[image_row(1), image_row(2)])
    train = open_dataset(file)
    files = samples.save_samples(train, tmp_path / "samples", 5)
    assert sorted(f.name for f in files) == ["000001_1.jpg", "000002_2.jpg"]
    with Image.open(files[0]) as drawn:
        assert drawn.size == (30, 20)
    (one,) = samples.save_samples(train, tmp_path / "one", 1)
    assert one.name == "000001_1.jpg", "the image with an object comes first"
