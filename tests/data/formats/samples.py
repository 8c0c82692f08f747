"""A small valid data set of every format, for the tests that mutate its files."""

import base64
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from maskkit.data.convert.labelstudio import pack
from maskkit.geometry import rle
from tests.data.written import write_image, write_json

SIZE = (12, 16)
POLYGON = [2, 2, 9, 2, 9, 8, 2, 8]


def _image_files(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_image(folder / name, seed, SIZE)


def _labels(path: Path, mode: str = "P") -> None:
    values = np.zeros(SIZE, np.uint8)
    values[2:8, 2:9], values[3:6, 10:14] = 1, 2
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    image.save(path)


def _coco_content(names: list[str]) -> dict:
    images = [{"id": i, "file_name": n, "height": 12, "width": 16} for i, n in enumerate(names, 1)]
    compressed = rle.to_text(rle.from_counts([5, 7, 180], SIZE))
    shapes = [[POLYGON], {"size": [12, 16], "counts": [5, 7, 180]}, dict(compressed)]
    rows = [
        {"id": i, "image_id": 1 + i % len(names), "category_id": 3 + 4 * (i % 2), "bbox": [2, 2, 7, 6], "area": 42.0}
        | {"iscrowd": int(i == 2), "segmentation": shape}
        for i, shape in enumerate(shapes, 1)
    ]
    return {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog", "supercategory": "none"}],
    }


def coco(folder: Path) -> None:
    _image_files(folder / "images", "a.png", "b.jpg")
    write_json(folder / "train.json", _coco_content(["a.png", "b.jpg"]))
    write_json(folder / "val.json", _coco_content(["b.jpg"]))


def coco_panoptic(folder: Path) -> None:
    _image_files(folder / "images", "a.png", "b.png")
    ids = np.zeros((*SIZE, 3), np.uint8)
    ids[2:8, 2:9, 0], ids[3:6, 10:14, 1] = 1, 1
    rows = []
    for number, name in enumerate(("a.png", "b.png"), 1):
        (folder / "panoptic_train").mkdir(exist_ok=True)
        Image.fromarray(ids).save(folder / "panoptic_train" / name)
        segments = [
            {"id": 1, "category_id": 3, "area": 42, "bbox": [2, 2, 7, 6], "iscrowd": 0},
            {"id": 256, "category_id": 7, "area": 12, "bbox": [10, 3, 4, 3], "iscrowd": number - 1},
        ]
        rows.append({"image_id": number, "file_name": name, "segments_info": segments})
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", "height": 12, "width": 16} for i, n in ((1, "a"), (2, "b"))],
        "annotations": rows,
        "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}],
    }
    write_json(folder / "panoptic_train.json", content)


def yolo(folder: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        _image_files(folder / "images" / split, f"{name}.jpg")
        path = folder / "labels" / split / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.6 0.1 0.6 0.7\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")


def voc(folder: Path) -> None:
    _image_files(folder / "JPEGImages", "a.jpg", "b c.jpg", "d.jpg")
    for kind in ("SegmentationObject", "SegmentationClass"):
        _labels(folder / kind / "a.png")
    for name in ("a", "b c", "d"):
        parts = "".join(
            f"<object><name>{n}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>3</ymin><xmax>9</xmax>"
            "<ymax>8</ymax></bndbox></object>"
            for n, x in (("aeroplane", 2), ("dog", 4))
        )
        size = "<size><width>16</width><height>12</height><depth>3</depth></size>"
        path = folder / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation><filename>{name}.jpg</filename>{size}{parts}</annotation>")
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb c\n")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("d\n")


def voc_named(folder: Path) -> None:
    """With ``class_names.txt``, as labelme's own converter writes it, and without lists or xml files."""
    _image_files(folder / "JPEGImages", "a.jpg", "b.jpg")
    for kind in ("SegmentationObject", "SegmentationClass"):
        for name in ("a", "b"):
            _labels(folder / kind / f"{name}.png")
    (folder / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")


def voc_coloured(folder: Path) -> None:
    """CVAT's export of segmentation masks: colours, of classes by ``labelmap.txt``, of objects by VOC's palette."""
    _image_files(folder / "JPEGImages", "a.jpg", "b.jpg")
    for kind, colours in (("Class", [[61, 245, 61], [250, 50, 83]]), ("Object", [[128, 0, 0], [0, 128, 0]])):
        for name in ("a", "b"):
            file = folder / f"Segmentation{kind}" / f"{name}.png"
            _labels(file)
            with Image.open(file) as image:
                values = np.asarray(image)
            Image.fromarray(np.array([[0, 0, 0], *colours], np.uint8)[values]).save(file)
    labels = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:61,245,61::\ndog:250,50,83:head:\n"
    (folder / "labelmap.txt").write_text(labels)


def labelimg(folder: Path) -> None:
    _image_files(folder, "a.jpg", "b c.jpg", "d.jpg")
    for name, place in (("a", folder), ("b c", folder)):
        text = (
            "<object><name>dog</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"
        )
        size = "<size><width>16</width><height>12</height><depth>3</depth></size>"
        cat = text.replace("dog", "cat").replace("<xmin>3", "<xmin>1")
        content = f'<annotation verified="yes"><filename>{name}.jpg</filename>{size}{text}{cat}</annotation>'
        (place / f"{name}.xml").write_text(content)


def yolo_without_yaml(folder: Path) -> None:
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        for name in names:
            _image_files(folder / "images" / split, f"{name}.jpg")
            path = folder / "labels" / split / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("0 0.5 0.5 0.25 0.5\n1 0.5 0.25 0.5 0.25\n")
    (folder / "classes.txt").write_text("cat\ndog\n")


def labelme(folder: Path) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.full((4, 5), 255, np.uint8)).save(mask, "PNG")
    shapes = [
        {"label": "cat", "points": [[2, 2], [9, 2], [9, 8]], "shape_type": "polygon", "group_id": 1, "flags": {}},
        {"label": "cat", "points": [[10, 3], [14, 6]], "shape_type": "rectangle", "group_id": 1},
        {"label": "dog", "points": [[6, 6], [8, 6]], "shape_type": "circle", "flags": {"crowd": True}},
        {"label": "dog", "points": [[2, 2], [6, 5]], "shape_type": "mask", "group_id": ""}
        | {"mask": base64.b64encode(mask.getvalue()).decode()},
    ]
    for name in ("a", "test"):
        _image_files(folder, f"{name}.jpg")
        content = {"version": "5.0", "imagePath": f"{name}.jpg", "imageData": None, "imageHeight": 12, "imageWidth": 16}
        write_json(folder / f"{name}.json", content | {"shapes": shapes})


def png(folder: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        _image_files(folder / "images" / split, f"{name}.jpg")
        _labels(folder / "masks" / split / f"{name}.png", "L" if name == "b" else "P")
    (folder / "classes.txt").write_text("background\ncat\ndog\n")


def png_described(folder: Path) -> None:
    """With ``classes.json``."""
    _image_files(folder / "images", "a.jpg", "b.jpg")
    for name in ("a", "b"):
        _labels(folder / "masks" / f"{name}.png")
    classes = [{"id": 0, "name": "sky"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "void": {"id": 255}}))


def tags(folder: Path) -> None:
    _image_files(folder, "a.jpg", "b.jpg", "c.jpg")
    (folder / "train.csv").write_text("image,cat,dog\na.jpg,1,0\nb.jpg,0,1\n")
    (folder / "val.csv").write_text("c.jpg,dog,cat\n")


def csv_of_boxes(folder: Path) -> None:
    _image_files(folder, "a.jpg", "b.jpg")
    rows = ["filename,width,height,class,xmin,ymin,xmax,ymax", "a.jpg,16,12,cat,2,2,9,8", "b.jpg,16,12,dog,1,1,5,6"]
    (folder / "train.csv").write_text("\n".join([*rows, "a.jpg,16,12,dog,10,3,14,6"]) + "\n")


def cvat(folder: Path) -> None:
    shapes = (
        '<polygon label="cat" points="2,2;9,2;9,8" group_id="1"/><polygon label="cat" points="10,3;14,3;14,6" '
        'group_id="1" z_order="0"/><box label="dog" xtl="1" ytl="1.5" xbr="5" ybr="6" rotation="10"/><mask label="dog" '
        'rle="2, 3, 1, 6" left="4" top="5" width="4" height="3"><attribute name="is_crowd">true</attribute></mask>'
        '<ellipse label="cat" cx="8" cy="6" rx="3" ry="2"/>'
    )
    labels = "<meta><task><labels><label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>"
    images = ""
    for i, (name, subset) in enumerate((("a", "train"), ("b", "train"), ("c", "val"))):
        _image_files(folder / "images" / subset, f"{name}.jpg")
        size = f'id="{i}" name="{name}.jpg" subset="{subset}" width="16" height="12"'
        images += f"<image {size}>{shapes}<tag label='cat'/></image>"
    text = f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{labels}{images}</annotations>'
    (folder / "annotations.xml").write_text(text)


def labelstudio(folder: Path) -> None:
    brush = np.zeros(SIZE, bool)
    brush[2:5, 3:9] = True
    common = {"original_width": 16, "original_height": 12, "image_rotation": 0, "to_name": "image"}
    regions = [
        {"id": "1", "type": "polygonlabels", "value": {"points": [[10, 10], [60, 10.5], [60, 70]], "closed": True}},
        {
            "id": "x2",
            "type": "brushlabels",
            "value": {"format": "rle", "rle": pack(brush)},
            "meta": {"text": ["crowd"]},
        },
        {"id": "x3", "type": "rectanglelabels", "value": {"x": 5, "y": 6, "width": 50, "height": 20, "rotation": 9}},
        {"id": "x4", "type": "ellipselabels", "value": {"x": 50, "y": 50, "radiusX": 12, "radiusY": 30}},
    ]
    for row, name in zip(regions, ("cat", "dog", "cat", "dog"), strict=True):
        row["value"][row["type"]] = [name]  # type: ignore[index]
    made = [{"id": 5, "result": [common | row for row in regions], "was_cancelled": False}]
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        _image_files(folder / "images" / split, *(f"{name}.jpg" for name in names))
        images = [f"/data/upload/1/0a1b2c3d-{names[0]}.jpg", f"/data/local-files/?d=images/{split}/{names[-1]}.jpg"]
        tasks = [{"id": i, "data": {"image": image}, "annotations": made} for i, image in enumerate(images, 1)]
        write_json(folder / f"{split}.json", tasks[: len(names)])
    (folder / "label_config.xml").write_text("<View><PolygonLabels><Label value='dog'/></PolygonLabels></View>")


def via(folder: Path) -> None:
    shapes = [
        {"name": "polygon", "all_points_x": [2, 9, 9.5], "all_points_y": [2, 2, 8]},
        {"name": "polygon", "all_points_x": [10, 14, 14], "all_points_y": [3, 3, 6]},
        {"name": "rect", "x": 1, "y": 1.5, "width": 4, "height": 5},
        {"name": "circle", "cx": 8, "cy": 6, "r": 3},
        {"name": "ellipse", "cx": 8, "cy": 6, "rx": 3, "ry": 2, "theta": 0.5},
    ]
    kinds = [{"part_of": "1"}, {"part_of": "1"}, {"is_crowd": "true"}, {}, {}]
    regions = [
        {"shape_attributes": shape, "region_attributes": {"class": "cat" if i < 3 else "dog"} | kind}
        for i, (shape, kind) in enumerate(zip(shapes, kinds, strict=True))
    ]
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        _image_files(folder / split, *(f"{name}.jpg" for name in names))
        rows = {
            f"{name}.jpg77": {"filename": f"{name}.jpg", "size": 77, "regions": regions, "file_attributes": {}}
            for name in names
        }
        options = {"region": {"class": {"type": "radio", "options": {"dog": "", "cat": ""}}}}
        write_json(folder / split / "via.json", {"_via_img_metadata": rows, "_via_attributes": options})


def via_of_version_3(folder: Path) -> None:
    _image_files(folder, "a.jpg", "b.jpg")
    drawings = [[7, 2, 2, 9, 2, 9, 8], [2, 1, 1, 4, 5], [3, 8, 6, 3], [4, 8, 6, 3, 2]]
    content = {
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": "drawn", "vid_list": ["1", "2"]},
        "attribute": {"1": {"aname": "kind", "type": 4, "options": {"0": "cat", "1": "dog"}}},
        "file": {str(i): {"fid": i, "fname": f"{n}.jpg", "type": 2, "loc": 1} for i, n in ((1, "a"), (2, "b"))},
        "metadata": {
            f"{view}_{i}": {"vid": view, "z": [], "xy": xy, "av": {"1": str(i % 2)}}
            for view in ("1", "2")
            for i, xy in enumerate(drawings)
        },
        "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
    }
    write_json(folder / "project.json", content)


def datumaro(folder: Path) -> None:
    rows = [
        {"id": 1, "type": "polygon", "label_id": 0, "group": 1, "points": POLYGON, "attributes": {"is_crowd": False}},
        {"id": 2, "type": "bbox", "label_id": 0, "group": 1, "bbox": [2, 2, 7, 6]},
        {"id": 3, "type": "bbox", "label_id": 1, "group": 0, "bbox": [1, 1.5, 4, 5]},
        {"id": 4, "type": "mask", "label_id": 1, "group": 2, "rle": rle.to_text(rle.from_counts([5, 7, 180], SIZE))},
        {"id": 5, "type": "ellipse", "label_id": 1, "group": 3, "points": [2, 3, 9, 7]},
        {"id": 6, "type": "label", "label_id": 1, "group": 0},
    ]
    labels = [{"name": name, "parent": "", "attributes": []} for name in ("cat", "dog")]
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        _image_files(folder / "images" / split, *(f"{name}.jpg" for name in names))
        items = [{"id": n, "annotations": rows, "attr": {"id": n}} for n in names]
        items[0]["image"] = {"path": f"{names[0]}.jpg", "size": [12, 16]}
        write_json(folder / f"annotations/{split}.json", {"categories": {"label": {"labels": labels}}, "items": items})


def supervisely(folder: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(np.full((4, 5), 255, np.uint8)).save(png, "PNG")
    bitmap = base64.b64encode(zlib.compress(png.getvalue())).decode()
    hole = {"exterior": [[2, 2], [12, 2], [12, 9], [2, 9]], "interior": [[[4, 4], [8, 4], [8, 7], [4, 7]]]}
    objects = [
        {"id": 1, "classTitle": "cat", "geometryType": "polygon", "points": hole, "tags": []},
        {"id": 2, "classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": bitmap, "origin": [3, 5]}},
        {"id": 3, "classTitle": "dog", "geometryType": "rectangle", "points": {"exterior": [[1, 2], [5, 6]]}}
        | {"tags": [{"name": "crowd"}]},
    ]
    write_json(folder / "meta.json", {"classes": [{"title": "cat"}, {"title": "dog"}], "tags": []})
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        _image_files(folder / split / "img", *(f"{name}.jpg" for name in names))
        for name in names:
            content = {"size": {"height": 12, "width": 16}, "objects": objects}
            tags = [{"name": "image_id", "value": name}]
            write_json(folder / split / "ann" / f"{name}.jpg.json", content | {"tags": tags})


def cityscapes(folder: Path) -> None:
    ids = np.zeros(SIZE, np.uint16)
    ids[2:8, 2:9], ids[3:6, 10:14], ids[9:11, :] = 2000, 2001, 1
    polygons = [
        {"label": "cat", "polygon": [[2, 2], [9, 2], [9, 8], [2, 8]]},
        {"label": "dog", "polygon": [[10, 3], [14, 3], [14, 6]]},
        {"label": "catgroup", "polygon": [[4, 4], [6, 4], [6, 6], [4, 6]]},
    ]
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        _image_files(folder / "leftImg8bit" / split / "city", *(f"{name}_leftImg8bit.png" for name in names))
        labels = folder / "gtFine" / split / "city"
        labels.mkdir(parents=True)
        for name in names:
            write_json(labels / f"{name}_gtFine_polygons.json", {"imgHeight": 12, "imgWidth": 16, "objects": polygons})
            if name != "c":
                Image.fromarray(ids).save(labels / f"{name}_gtFine_instanceIds.png")
                kinds = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
                Image.fromarray(kinds).save(labels / f"{name}_gtFine_labelIds.png")
    classes = [{"id": 1, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}]
    write_json(folder / "classes.json", {"classes": classes})


TOOLS = (cityscapes, supervisely, cvat, labelstudio, via, via_of_version_3, datumaro)
SAMPLES: dict[str, Callable[[Path], None]] = {
    f.__name__: f
    for f in (
        *(coco, coco_panoptic, yolo, yolo_without_yaml, voc, voc_named, voc_coloured, labelimg, labelme, png),
        *(png_described, tags, csv_of_boxes, *TOOLS),
    )
}
"""Writers of a data set into a folder, by name."""
