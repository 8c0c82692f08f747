"""A race of equal processor time: our small presets beside torchvision's Mask R-CNN, D-FINE-seg and RF-DETR-seg.

    python benchmarks/race.py --data DATA/nuclei_dsb2018 --weights mobilenetv2_100.safetensors --out RUNS \\
        --preset maskrcnn-mobilenetv2-320 condinst-mobilenetv2-320 --seeds 0 1 2 --torchvision default narrow \\
        --dfine-seg ENV/bin/python --rfdetr ENV/bin/python

Each side trains for ``--seconds`` of processor time on the same images and is evaluated on the same validation images
by `maskkit.eval.instance.metric`, in a process of its own, one after the other. A file in ``--out`` is a row of the
table; what is there already is not trained again, so that a race can be run in parts.

Our presets are trained by equal_time.py and torchvision's Mask R-CNN, in its default widths and in those of ours, by
against_torchvision.py, both from the backbone of ``--weights``; ``--random`` adds the presets without it. The other two
libraries (Apache-2.0) are in environments of their own, made by ``pip install dfine-seg`` and by
``pip install "rfdetr[train]"``; common_race.py trains the smallest model of each by its own recipe, from random
weights, the start that they have without a download. Peak memory is that of the process, prediction included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common_timing import describe
from maskkit.data import open_splits
from maskkit.data.convert.outlines import polygons_of
from maskkit.data.dataset import Dataset
from maskkit.eval.instance.metric import evaluate
from maskkit.eval.numbers import shown

HERE = Path(__file__).parent
BACKBONE, RANDOM = "mobilenetv2_100", "random"
WIDTHS = ("default", "narrow")
"""Of torchvision's Mask R-CNN: its own, and those of ours."""


def sides(given: argparse.Namespace, data: Path) -> dict[str, tuple[str, list[str]]]:
    """The start of each side and its command, without ``--out``; ``data`` is what other libraries read."""
    common = ["--data", str(given.data), "--threads", str(given.threads), "--minutes", str(given.seconds / 120)]
    backbone = ["--weights", str(given.weights)]
    found = {}
    for preset in given.preset:
        ours = [sys.executable, str(HERE / "equal_time.py"), *common, "--model", preset]
        for seed in given.seeds:
            found[f"{preset}-{seed}"] = (BACKBONE, [*ours, *backbone, "--seed", str(seed)])
        if given.random:
            found[f"{preset}-random"] = (RANDOM, [*ours, "--seed", "0"])
    theirs = [sys.executable, str(HERE / "against_torchvision.py"), *common, *backbone, "--side", "torchvision"]
    for widths in given.torchvision:
        narrow = ["--narrow"] if widths == "narrow" else []
        found[f"torchvision-{widths}"] = (BACKBONE, [*theirs, "--size", "320", *narrow])
    for library, python in (("dfine-seg", given.dfine_seg), ("rfdetr", given.rfdetr)):
        if python:
            other = [str(python), str(HERE / "common_race.py"), "--library", library, "--data", str(data)]
            found[library] = (RANDOM, [*other, "--seconds", str(given.seconds), "--threads", str(given.threads)])
    return found


def write_data(train_set: Dataset, val_set: Dataset, folder: Path) -> None:
    """Links to the images, and COCO files with polygons, as D-FINE-seg and RF-DETR read them."""
    for split, other_name, dataset in (("train", "train", train_set), ("val", "valid", val_set)):
        truth = dataset.coco()
        places = [folder / "images", folder / other_name]
        for place in places:
            place.mkdir(exist_ok=True)
        for image, record in zip(truth["images"], dataset.records, strict=True):
            image["file_name"] = f"{record.image_id}{record.path.suffix}"
            for place in places:
                (place / image["file_name"]).symlink_to(record.path.resolve())
        found = [(r, a) for r in dataset.records for a in r.annotations]
        for row, (record, annotation) in zip(truth["annotations"], found, strict=True):
            row["segmentation"] = [p.tolist() for p in polygons_of(annotation, record.size)]
        text = json.dumps(truth)
        (folder / f"{split}.json").write_text(text)
        (places[1] / "_annotations.coco.json").write_text(text)


def run(command: list[str], out: Path, log: Path, threads: int) -> float:
    """Run a side, which writes ``out``; the most memory of its process, in MiB."""
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen([*command, "--out", str(out)], env=environment, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
    if status or not out.exists():
        sys.exit(f"{command[1]} ended with status {status}; its output is in {log}")
    return usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def row_of(name: str, given: argparse.Namespace, start: str, command: list[str], val_set: Dataset) -> dict[str, Any]:
    """One row of the table: trained here, or as ``--out`` has it."""
    kept = given.out / f"{given.data.name}-{name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        out = Path(folder, "result.json")
        memory = run(command, out, kept.with_suffix(".log"), given.threads)
        result = json.loads(out.read_text())
    metrics = evaluate(result["rows"], val_set.coco())
    assert metrics.segm is not None
    row = {"data": given.data.name, "side": name, "start": start, "steps": result["facts"]["steps"]}
    row |= {k: shown(metrics.segm[k]) for k in ("AP", "AP50")}
    row |= {"cpu_seconds": result["facts"]["cpu_seconds"], "MiB": round(memory)}
    kept.write_text(json.dumps(row | {"machine": describe(given.threads)}))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="mobilenetv2_100.safetensors")
    parser.add_argument("--preset", nargs="*", default=[], help="our sides, presets with this backbone")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of our sides")
    parser.add_argument("--random", action="store_true", help="our sides from random weights too, seed 0")
    parser.add_argument("--torchvision", nargs="*", choices=WIDTHS, default=[], help="its Mask R-CNN in these widths")
    parser.add_argument("--dfine-seg", type=Path, help="an interpreter that has dfine-seg")
    parser.add_argument("--rfdetr", type=Path, help="an interpreter that has rfdetr[train]")
    parser.add_argument("--seconds", type=float, default=120, help="processor seconds of each training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    train_set, val_set = open_splits(str(given.data), None, 0.2, 0)
    print(describe(given.threads))
    print("| data | side | start | steps | mask AP | AP50 | processor seconds | peak MiB |")
    with tempfile.TemporaryDirectory() as folder:
        write_data(train_set, val_set, Path(folder))
        for name, (start, command) in sides(given, Path(folder)).items():
            row = row_of(name, given, start, command, val_set)
            print("| " + " | ".join(str(v) for k, v in row.items() if k != "machine") + " |", flush=True)


if __name__ == "__main__":
    main()
