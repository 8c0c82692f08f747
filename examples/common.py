"""What the examples share: COCO annotations merged into one data set, with the classes of choice."""

import json
from collections.abc import Sequence
from pathlib import Path

from maskkit.zoo.class_names import VOC

PARTS = ("coco_instances", "coco_panoptic")
_OWN_IDS = 10**12
"""Ids of images that are not COCO's begin here."""
SUPER = {
    "person": "person",
    **dict.fromkeys(("bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"), "vehicle"),
    **dict.fromkeys(("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"), "animal"),
}
"""The super-categories of COCO's classes that ``everyday`` knows."""
VOC_IN_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}


def class_of(category: dict, classes: str) -> str | None:
    """The class of a COCO category under a choice of classes; None leaves its objects out."""
    if classes == "person":
        return "person" if category["name"] == "person" else None
    if classes == "voc":
        wanted = {VOC_IN_COCO.get(name, name) for name in VOC.names}
        return category["name"] if category["name"] in wanted else None
    if classes == "everyday":
        return category["supercategory"] if category["supercategory"] in ("person", "animal", "vehicle") else None
    if classes == "super":
        return category["supercategory"]
    return category["name"]


def merge(data: Path, split: str, classes: str, out: Path, parts: Sequence[str] = PARTS) -> Path:
    """One COCO file of the ``split`` of all ``parts``; an image in several parts is taken from the first.

    The images of a part that numbers them itself, and not as COCO does, get other numbers.
    """
    images, annotations, names = {}, [], {}
    for part in parts:
        content = json.loads((data / part / f"{split}.json").read_text())
        mapped = {c["id"]: class_of(c, classes) for c in content["categories"]}
        for category in content["categories"]:
            if mapped[category["id"]]:
                names.setdefault(mapped[category["id"]], len(names) + 1)
        new = {i["id"]: i for i in content["images"] if Path(i["file_name"]).stem not in images}
        for image in new.values():
            stem = Path(image["file_name"]).stem
            image["file_name"] = str((data / part / "images" / Path(image["file_name"]).name).resolve())
            image["id"] = int(stem) if stem.isdigit() else _OWN_IDS + len(images)
            images[stem] = image
        for annotation in content["annotations"]:
            name = mapped[annotation["category_id"]]
            if annotation["image_id"] in new and name:
                ids = {"id": len(annotations) + 1, "image_id": new[annotation["image_id"]]["id"]}
                annotations.append(annotation | ids | {"category_id": names[name]})
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{split}.json"
    categories = [{"id": i, "name": n} for n, i in names.items()]
    path.write_text(json.dumps({"images": list(images.values()), "annotations": annotations, "categories": categories}))
    return path
