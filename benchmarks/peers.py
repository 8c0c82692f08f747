"""maskkit beside other libraries, with the same weights and inputs, in one run: speed and memory.

    python benchmarks/peers.py --out runs/peers.json --data DATA/coco_instances
    python benchmarks/peers.py --out runs/peers.json --only mask-rcnn fcos/training
    python benchmarks/peers.py --table runs/peers-a.json runs/peers-b.json

Every comparison runs in a process of its own, its sides in turn, at least five rounds after one that is not counted.
After each the results are written to ``--out``; what is there already from this machine is kept, so that a run can be
made in parts. ``--table`` prints files as the tables of docs/benchmarks/speed.md.

Subjects: detectors and semantic networks beside torchvision, Mask2Former beside transformers (up to its mask logits),
each in eager mode, compiled by ``torch.compile``, as a file in ONNX Runtime and in OpenVINO, as a training step of two
images with the optimizer of its recipe, and the most memory of a prediction and of two training steps. YOLACT-R50
beside the convolution peak of the machine, which is the best rate of 3x3 convolutions of several sizes. COCO's protocol
beside pycocotools, faster-coco-eval and hotcoco, from JSON types in memory and from files; its detections are the
ground truth of ``--data`` with random errors. A folder of images beside the bare network. With ``--ultralytics``, the
interpreter of an environment of its own with ultralytics and onnx in it (its licence is the AGPL, so it is never
imported here), small models beside the files that it exports.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common_timing import in_words, machine, seconds, take_turns

PACKAGES = (
    *("maskkit", "torch", "torchvision", "timm", "transformers", "onnxruntime", "openvino"),
    *("pycocotools", "faster-coco-eval", "hotcoco"),
)
OURS = "maskkit"
INFERENCE = {
    "eager": "inference",
    "compiled": "inference, compiled",
    "onnx": "inference, ONNX Runtime",
    "openvino": "inference, OpenVINO",
}
LEARNING = {"training": "training step", "memory": "memory, inference", "training-memory": "memory, training"}
OF_PAIRS = INFERENCE | LEARNING
SUBJECTS: dict[str, tuple[str, dict[str, str]]] = {
    "mask-rcnn": ("Mask R-CNN R-50", OF_PAIRS),
    "faster-rcnn": ("Faster R-CNN R-50", OF_PAIRS),
    "fcos": ("FCOS R-50", OF_PAIRS),
    "deeplab": ("DeepLab v3 R-50", OF_PAIRS),
    "fcn": ("FCN R-50", OF_PAIRS),
    "mask2former-r50": ("Mask2Former R-50", OF_PAIRS),
    "mask2former-swin-t": ("Mask2Former Swin-T", OF_PAIRS),
    "yolact": ("YOLACT R-50", {**INFERENCE, "parts": "from JPEG to run lengths"}),
    "protocol": ("COCO metrics", {"memory-to-numbers": "from memory", "files-to-numbers": "from files"}),
    "folder": ("A folder of images", {"photographs": "480 x 640", "large": "1200 x 1600"}),
    "ultralytics": ("Small models as files", {k: INFERENCE[k] for k in ("onnx", "openvino")}),
}
"""Title of each subject, and titles of what is measured of it."""

Comparison = dict[str, Any]
"""``subject``, ``measure``, ``what``, and ``sides``: ``processor`` and ``wall`` in ms of each round, or ``mib`` or
``error``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/peers.json"))
    parser.add_argument("--only", nargs="*", default=[], help="subjects, or SUBJECT/MEASURE", metavar="SUBJECT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", type=Path, help="COCO ground truth with masks, for the protocol")
    parser.add_argument("--ultralytics", type=Path, help="an interpreter that has ultralytics")
    parser.add_argument("--seconds", type=int, default=1800, help="the longest that one comparison may take")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of such files")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        table([json.loads(path.read_text()) for path in given.table])
    elif given.one:
        subject, measure = given.one.split("/", 1)
        given.out.write_text(json.dumps(measured(subject, measure, given)))
    else:
        run(given)


# the run --------------------------------------------------------------------------------------------------------------


def run(given: argparse.Namespace) -> None:
    """Make the comparisons that are asked for, each in a process, and write them as they come."""
    asked = [f"{s}/{m}" for s, (_, measures) in SUBJECTS.items() for m in measures]
    for name in given.only:
        if not any(a == name or a.startswith(f"{name}/") for a in asked):
            sys.exit(f"{name} is none of: {' '.join(SUBJECTS)}; measures follow a slash: {' '.join(OF_PAIRS)}")
    if given.only:
        asked = [a for a in asked if a in given.only or a.split("/")[0] in given.only]
    for option, needs in (("data", "protocol"), ("ultralytics", "ultralytics")):
        if getattr(given, option) is None and any(a.startswith(f"{needs}/") for a in asked):
            print(f"without --{option}, {SUBJECTS[needs][0]} are left out")
            asked = [a for a in asked if not a.startswith(f"{needs}/")]
    facts = machine(given.threads, PACKAGES)
    record = {"machine": facts, "rounds": given.rounds, "comparisons": []}
    if given.out.exists():
        record = json.loads(given.out.read_text())
        if other := [k for k in ("processor", "threads", "versions") if record["machine"][k] != facts[k]]:
            sys.exit(f"{given.out} has another {' and '.join(other)}; choose another --out")
    print(in_words(facts), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in asked:
        found = in_process(name, given)
        record["comparisons"] = [c for c in record["comparisons"] if f"{c['subject']}/{c['measure']}" != name] + [found]
        partial = given.out.with_suffix(".tmp")
        partial.write_text(json.dumps(record))
        partial.replace(given.out)
        for line in rows_of([(facts, found)]):
            print(f"| {' | '.join(line)} |", flush=True)


def in_process(name: str, given: argparse.Namespace) -> Comparison:
    """One comparison in a process of its own; memory, in one for each side."""
    subject, measure = name.split("/", 1)
    if not measure.endswith("memory"):
        return child(name, given)
    parts = [child(f"{name}/{side}", given) for side in ("theirs", "ours")]
    sides = {side: value for part in parts for side, value in part["sides"].items()}
    return {**parts[0], "subject": subject, "measure": measure, "sides": sides}


def child(name: str, given: argparse.Namespace) -> Comparison:
    """What a process of this script says about a comparison."""
    subject, measure = name.split("/", 1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "one.json")
        command = [sys.executable, __file__, "--one", name, "--out", str(out)]
        command += ["--rounds", str(given.rounds), "--threads", str(given.threads)]
        command += ["--data", str(given.data)] if given.data else []
        command += ["--ultralytics", str(given.ultralytics)] if given.ultralytics else []
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=given.seconds)
        except subprocess.TimeoutExpired:
            return {"subject": subject, "measure": measure, "sides": {}, "error": f"more than {given.seconds} s"}
        if out.exists():
            return json.loads(out.read_text())
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"subject": subject, "measure": measure, "sides": {}, "error": last[:300]}


# one comparison, in its process ---------------------------------------------------------------------------------------


def measured(subject: str, measure: str, given: argparse.Namespace) -> Comparison:
    """The comparison of one process."""
    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        if subject == "protocol":
            found = protocol(measure, given, Path(name))
        elif subject == "folder":
            found = of_folder(measure, given, Path(name))
        elif subject == "ultralytics":
            found = small_files(measure, given, Path(name))
        elif subject == "yolact":
            found = yolact(measure, given, Path(name))
        else:
            found = pair(subject, measure, given, Path(name))
    return {"subject": subject, "measure": measure, **found}


def in_turns(sides: dict[str, Callable[[], Callable[[], Any]]], rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results and times of the sides that can be built and called; of the others, the error."""
    calls, errors = {}, {}
    for name, build in sides.items():
        try:
            calls[name] = build()
            calls[name]()
        except Exception as error:  # of any library
            traceback.print_exc()
            calls.pop(name, None)
            lines = str(error).strip().splitlines() or [""]
            errors[name] = {"error": f"{type(error).__name__}: {lines[0][:300]}"}
    results, times = take_turns(calls, rounds)
    return results, errors | {
        name: {"processor": [1000 * p for p, _ in took], "wall": [1000 * w for _, w in took]}
        for name, took in times.items()
    }


def pair(subject: str, measure: str, given: argparse.Namespace, folder: Path) -> Comparison:
    """A network beside the same one of another library."""
    import torch

    from common_pairs import PAIRS, Compiled, agreement, in_onnx_runtime, in_openvino
    from maskkit.export.write import open_runtime

    networks = PAIRS[subject]()
    theirs = networks.library
    size = networks.size if "training" not in measure else networks.train_size
    what = f"{'2 x ' if 'training' in measure else ''}{size[0]} x {size[1]}"
    if "memory" in measure:
        kind, side = measure.split("/")
        name = OURS if side == "ours" else theirs
        if kind == "memory":
            networks.keep(name)
        calls = networks.steps() if kind == "training-memory" else {}
        call = calls.get(name) or (networks.our_call() if side == "ours" else networks.their_call())
        return {"what": what, "sides": {name: {"mib": most_memory(call)}}}
    if measure == "training":
        calls = networks.steps()
        results, sides = in_turns({name: lambda call=call: call for name, call in calls.items()}, given.rounds)
        return {"what": what, "sides": sides, "note": "; ".join(f"loss {v:.5g} ({n})" for n, v in results.items())}

    def their_file(load: Callable) -> Callable[[], Any]:
        run = load(networks.their_file(folder / "theirs.onnx"), given.threads)

        def call() -> Any:
            taken = networks.given()[0]
            return networks.end(run([t.numpy() for t in taken] if isinstance(taken, list) else [taken.numpy()]))

        return call

    def our_file(suffix: str) -> Callable[[], Any]:
        path = networks.our_file(folder / f"ours{suffix}")
        return networks.our_call(open_runtime(path, threads=given.threads))

    sides = {
        "eager": (networks.their_call, networks.our_call),
        "compiled": (
            lambda: networks.their_call(torch.compile(networks.theirs)),
            lambda: networks.our_call(Compiled(networks.ours)),
        ),
        "onnx": (lambda: their_file(in_onnx_runtime), lambda: our_file(".onnx")),
        "openvino": (lambda: their_file(in_openvino), lambda: our_file(".xml")),
    }[measure]
    results, times = in_turns(dict(zip((theirs, OURS), sides, strict=True)), given.rounds)
    note = agreement(*results.values()) if len(results) == 2 else ""
    return {"what": what, "sides": times, "note": note}


def most_memory(call: Callable[[], Any]) -> float:
    """MiB at the peak of two calls, with what is in memory before."""
    import resource

    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak from here on
    for _ in range(2):
        call()
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def yolact(measure: str, given: argparse.Namespace, folder: Path) -> Comparison:
    """The network beside the convolution peak, or each step of a prediction."""
    import numpy as np
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from common_pairs import Compiled
    from maskkit import zoo
    from maskkit.checkpoints.checkpoint import Checkpoint
    from maskkit.config import RunConfig
    from maskkit.decode import decode
    from maskkit.export.write import ExportConfig, export, open_runtime
    from maskkit.infer.preprocess import prepare, stack
    from maskkit.infer.sources import loose_images
    from maskkit.infer.torch_runtime import TorchRuntime
    from maskkit.models.yolact import Yolact
    from maskkit.prediction import Categories

    torch.manual_seed(0)
    preset = zoo.preset("yolact-resnet50")
    network: Any = Yolact(preset.model).eval()  # type: ignore[arg-type]
    nn.init.normal_(
        network.head.conf.weight, std=0.5
    )  # spread class logits: a hundred objects, the most expensive case
    names = Categories.of([f"class {i}" for i in range(preset.model.num_classes)])
    image = drawn_jpegs(folder, 1, (427, 640))[0]

    def read() -> Any:
        item = next(loose_images([image]))
        return stack([prepare(*item.read(preset.input), preset.input)], preset.input)

    inputs = read()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.from_numpy(np.ascontiguousarray(inputs.images)))
    flops = counter.get_total_flops()
    eager = TorchRuntime(network, "cpu", fold=True)
    arrays = eager.run(inputs.images, inputs.sizes)

    def to_masks() -> Any:
        return decode(network.decoder, arrays, inputs.metas, names)[0]

    what = f"{preset.input.size[0]} x {preset.input.size[1]}, {len(to_masks())} objects, {flops / 1e9:.1f} GFLOP"
    if measure == "parts":
        parts = {"read": read, "network": lambda: eager.run(inputs.images, inputs.sizes), "decode": to_masks}
        _, sides = in_turns({name: lambda call=call: call for name, call in parts.items()}, given.rounds)
        return {"what": what, "sides": sides}

    def of_file(suffix: str) -> Any:
        path = folder / f"yolact{suffix}"
        checkpoint = Checkpoint(network, RunConfig(preset.name, preset.model, preset.input), names, {})
        export(checkpoint, path, ExportConfig(), force=True)
        return open_runtime(path, threads=given.threads)

    build = {
        "eager": lambda: eager,
        "compiled": lambda: Compiled(network),
        "onnx": lambda: of_file(".onnx"),
        "openvino": lambda: of_file(".xml"),
    }[measure]

    def runs(runtime: Any) -> Callable[[], Any]:
        return lambda: runtime.run(inputs.images, inputs.sizes)

    peaks = []
    _, sides = in_turns(
        {OURS: lambda: runs(build()), "": lambda: lambda: peaks.append(convolution_peak())}, given.rounds
    )
    del sides[""]
    for clock, place in (("processor", 0), ("wall", 1)):
        rates = [peak[place] for peak in peaks[-given.rounds :]]
        sides.setdefault("convolution peak", {})[clock] = [1000 * flops / rate for rate in rates]
    best = max(rate for _, rate in peaks) / 1e9
    return {"what": what, "sides": sides, "note": f"convolution peak {best:.0f} GFLOP/s"}


def convolution_peak() -> tuple[float, float]:
    """The highest FLOP per processor and per wall-clock second of single 3x3 convolutions of five sizes."""
    import torch
    from torch import nn

    rates = []
    with torch.inference_mode():
        for channels, side in ((64, 138), (128, 69), (256, 138), (256, 69), (512, 18)):
            layer: Any = nn.Conv2d(channels, channels, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
            took = [seconds(lambda layer=layer, x=x: layer(x))[1:] for _ in range(7)][2:]
            flops = 2 * channels * channels * 9 * side * side
            rates.append([flops / statistics.median(t[i] for t in took) for i in (0, 1)])
    return max(r[0] for r in rates), max(r[1] for r in rates)


def protocol(measure: str, given: argparse.Namespace, folder: Path) -> Comparison:
    """COCO's protocol of four libraries."""
    import numpy as np

    from common_protocol import calls

    sides, what = calls(given.data, folder if measure.startswith("files") else None, given.rounds + 1)
    results, times = in_turns({name: lambda call=call: call for name, call in sides.items()}, given.rounds)
    off = {n: np.abs(r - results["pycocotools"]).max() for n, r in results.items() if n != "pycocotools"}
    note = "largest difference of 24 numbers from pycocotools: " + ", ".join(f"{v:.2g} ({n})" for n, v in off.items())
    return {"what": what, "sides": times, "note": note}


def of_folder(measure: str, given: argparse.Namespace, folder: Path) -> Comparison:
    """`maskkit predict` of the built-in model on JPEGs, with its start, beside its network alone on the same ones."""
    import torch

    from maskkit.api import load
    from maskkit.cli.predict import predict
    from maskkit.infer.preprocess import prepare, stack
    from maskkit.infer.sources import loose_images

    photographs = folder / "photographs"
    photographs.mkdir()
    size = {"photographs": (480, 640), "large": (1200, 1600)}[measure]
    images = drawn_jpegs(photographs, 96, size)
    segmenter = load("built-in", "cpu")
    read = [prepare(*item.read(segmenter.input), segmenter.input) for item in loose_images(images)]
    inputs = [stack([image], segmenter.input) for image in read]

    def network() -> int:
        torch.set_num_threads(given.threads)
        return sum(len(next(iter(segmenter.runtime.run(i.images, i.sizes).values()))) for i in inputs)

    def whole() -> int:
        return predict((str(photographs),), out=str(folder / "out"), threads=given.threads)

    sides: dict[str, Callable] = {"network alone": lambda: network, OURS: lambda: whole}
    what = f"{len(images)} images of {size[0]} x {size[1]}"
    return {"what": what, "sides": in_turns(sides, given.rounds)[1]}


def small_files(measure: str, given: argparse.Namespace, folder: Path) -> Comparison:
    """Small models in 640 x 640, beside the files with NMS that ultralytics exports."""
    import numpy as np
    import torch

    from common_pairs import in_onnx_runtime, in_openvino
    from maskkit import zoo
    from maskkit.checkpoints.checkpoint import Checkpoint
    from maskkit.config import RunConfig
    from maskkit.export.unit_variance import unit_variance
    from maskkit.export.write import ExportConfig, export, open_runtime
    from maskkit.prediction import Categories

    load = {"onnx": in_onnx_runtime, "openvino": in_openvino}[measure]
    noise = np.random.default_rng(0).random((1, 3, 640, 640), dtype=np.float32)

    def ours(name: str) -> Callable[[], Any]:
        torch.manual_seed(0)
        preset, path = zoo.preset(name), folder / f"{name}{'.onnx' if measure == 'onnx' else '.xml'}"
        model = unit_variance(zoo.model_class(name)(preset.model), torch.from_numpy(noise))  # type: ignore[call-arg]
        names = Categories.of([f"class {i}" for i in range(preset.model.num_classes)])
        checkpoint = Checkpoint(model, RunConfig(name, preset.model, preset.input), names, {})
        export(checkpoint, path, ExportConfig(size=(640, 640)), force=True)
        runtime = open_runtime(path, threads=given.threads)
        return lambda: runtime.run(noise, np.array([[640, 640]]))

    def theirs(name: str) -> Callable[[], Any]:
        code = f"from ultralytics import YOLO; YOLO('{name}.yaml', task='segment').export(format='onnx', nms=True)"
        subprocess.run([given.ultralytics, "-c", code], cwd=folder, check=True, capture_output=True)
        run = load(next(folder.rglob(f"{name}*.onnx")), given.threads)
        return lambda: run([noise])

    sides: dict[str, Callable] = {}
    for name in ("nanoinst-416", "yolact-mobilenetv2-320", "condinst-mobilenetv2-320", "solov2-mobilenetv2-320"):
        sides[name] = lambda name=name: ours(name)
    for name in ("yolo11n-seg", "yolov8n-seg"):
        sides[f"ultralytics {name}"] = lambda name=name: theirs(name)
    return {"what": "640 x 640", "sides": in_turns(sides, given.rounds)[1]}


def drawn_jpegs(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """Drawn photographs of ``size`` (height, width) as JPEG files."""
    from PIL import Image

    from maskkit.data.shapes import draw

    paths = []
    for seed in range(count):
        pixels = draw(seed, size, (6, 10))[0].permute(1, 2, 0).numpy()
        paths.append(folder / f"{seed:03}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


# tables ---------------------------------------------------------------------------------------------------------------

HEAD = ("comparison", "input", "maskkit", "beside", "", "times as fast, processor time", "by the clock", "note")


def table(records: Sequence[dict[str, Any]]) -> None:
    """Print comparisons of one or several machines, one row for each machine, and the facts of each below."""
    names = [chr(ord("A") + i) for i in range(len(records))]
    order = [f"{s}/{m}" for s, (_, measures) in SUBJECTS.items() for m in measures]
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for name in order:
        same = [
            ({**record["machine"], "name": letter}, c)
            for letter, record in zip(names, records, strict=True)
            for c in record["comparisons"]
            if f"{c['subject']}/{c['measure']}" == name
        ]
        for line in rows_of(same):
            print(f"| {' | '.join(line)} |")
    print()
    for letter, record in zip(names, records, strict=True):
        print(f"- {letter}: {in_words(record['machine'])}; {record['rounds']} rounds")


def rows_of(found: Sequence[tuple[dict[str, Any], Comparison]]) -> list[list[str]]:
    """The rows of a comparison on each machine: one for each other side, or for each part."""
    rows = []
    for facts, comparison in found:
        title, measures = SUBJECTS[comparison["subject"]]
        name = f"{title}, {measures[comparison['measure']]}"
        machine = f" ({facts['name']})" if "name" in facts else ""
        sides, start = comparison["sides"], [name + machine, comparison.get("what", "")]
        if error := comparison.get("error"):
            rows.append([*start, "", "", "", "", "", error])
        ours = sides.get(OURS)
        for other, value in sides.items():
            if other != OURS:
                rows.append(
                    [*start, shown(ours), other, shown(value), *compared(value, ours), comparison.get("note", "")]
                )
    return rows


def shown(side: dict[str, Any] | None) -> str:
    """Median milliseconds of processor time, the peak of the memory, or the error."""
    if side is None:
        return ""
    if "error" in side:
        return side["error"]
    if "mib" in side:
        return f"{side['mib']:,.0f} MiB"
    return f"{statistics.median(side['processor']):,.0f} ms"


def compared(theirs: dict[str, Any], ours: dict[str, Any] | None) -> tuple[str, str]:
    """Ratios of processor and wall-clock time: the median of the rounds (least to most); of memory, one ratio."""
    if ours is None or "error" in theirs or "error" in ours:
        return "", ""
    if "mib" in ours:
        return f"memory x {ours['mib'] / theirs['mib']:.2f}", ""
    cells = []
    for clock in ("processor", "wall"):
        ratios = [a / b for a, b in zip(theirs[clock], ours[clock], strict=True)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return cells[0], cells[1]


if __name__ == "__main__":
    main()
