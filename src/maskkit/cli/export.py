"""`maskkit export`: a model as a file for ONNX Runtime, OpenVINO or AOTInductor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from maskkit.cli.console import stdout, wrong_usage
from maskkit.cli.options import Fetch
from maskkit.errors import DataError
from maskkit.ranges import Batch, Pixels

if TYPE_CHECKING:
    from maskkit.data.dataset import Dataset
    from maskkit.eval.numbers import Metric
    from maskkit.export.write import Exported


def export(
    model: str,
    out: Path,
    size: tuple[Pixels, Pixels] | None = None,
    batch: Batch = 1,
    dynamic: tuple[Literal["batch", "size"], ...] = (),
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    int8: Path | None = None,
    data: Path | None = None,
    images: Path | None = None,
    force: bool = False,
    fetch: Annotated[Fetch, arg(name="")] = Fetch(),  # noqa: B008 (frozen)
) -> int:
    """Export a model as ONNX (.onnx), OpenVINO (.xml) or a compiled package (.pt2).

    The file contains the network, its classes and its preprocessing: `maskkit predict`, `eval` and `maskkit.load` take
    it in place of a checkpoint, also on machines without PyTorch (.onnx, .xml). It is compared with the checkpoint
    first, and not written if the predictions disagree or if it loses more than 0.001 AP on --data in fp32, or 0.01 in a
    lower precision.

    Example: maskkit export --model runs/pets/best.safetensors --out pets.onnx

    Example: maskkit export --model runs/pets/best.safetensors --out pets.xml --int8 pets/

    Args:
        model: Checkpoint, built-in, or a preset with published weights.
        out: File to write; its suffix chooses the format.
        size: Height and width of the network's input; by default as in the checkpoint.
        batch: Images per call.
        dynamic: What may vary from call to call: batch, size or both. Not every method allows this.
        precision: Of the arithmetic; bf16 and fp16 are for OpenVINO and need --data.
        int8: Data set (50 images or more) to quantise the convolutions with, and to measure the loss of AP on.
        data: Data set to evaluate the model on before and after.
        images: Folder of images to compare on, instead of those of the package.
        force: Write the file even if it disagrees with the checkpoint, or loses more AP than its precision may cost.
        fetch: Downloads.
    """
    fetch.apply()
    from maskkit.api import find_weights
    from maskkit.checkpoints.checkpoint import load_model
    from maskkit.data.images import find_images
    from maskkit.eval.rows import rows_of, shared_classes, translated
    from maskkit.eval.task import TASKS
    from maskkit.export.write import ExportConfig
    from maskkit.export.write import export as write
    from maskkit.infer.predict import Predictor

    if int8 is not None and precision != "fp32":
        wrong_usage("--int8 is a precision too; leave --precision out")
    compared = find_images(images) if images is not None else []
    if images is not None and not compared:
        raise DataError(f"{images}: contains no image; check the path")
    checkpoint = load_model(find_weights(model))
    task = TASKS[checkpoint.model.task]
    source = data or int8

    def measure(predictor: Predictor, dataset: Dataset) -> dict[str, Metric]:
        ids, known = shared_classes(checkpoint.categories, dataset)
        return task.evaluate(translated(rows_of(predictor.dataset(known)), ids), known).main

    done = write(
        checkpoint,
        out,
        ExportConfig(size, batch, dynamic, "int8" if int8 is not None else precision),
        images=compared,
        data=task.view(task.open(source, "val")) if source is not None else None,
        calibration=task.open(int8, "train") if int8 is not None else None,
        measure=measure,
        force=force,
        say=lambda line: stdout().print(f"{line} ..."),
    )
    _report(done)
    return 0


def _report(done: Exported) -> None:
    from maskkit.eval.numbers import shown

    console = stdout()
    weights = {".xml": ".bin", ".onnx": ".data"}.get(done.path.suffix, done.path.suffix)
    files = {done.path, done.path.with_suffix(weights)}
    megabytes = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    console.print(f"{done.path}: {megabytes:.1f} MB")
    if done.agreement is not None:
        console.print(f"compared with the checkpoint: {done.agreement}")
        gaps = ", ".join(f"{name} {gap:.2g}" for name, gap in done.agreement.outputs.items())
        console.print(f"largest difference of each output: {gaps}")
    if done.resized is not None:
        console.print(
            "images are fitted into an input of one size, which the checkpoint does not do; compared with its own way: "
            f"{done.resized}"
        )
    if done.before is not None and done.after is not None:
        for name, value in done.before.items():
            console.print(f"{name}: {shown(value)} before, {shown(done.after[name])} after")
