"""`maskkit import`: convert a published checkpoint; every field of the preset's model is an option."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from maskkit.cli.console import wrong_usage
from maskkit.cli.options import Fetch, refuse_ranges
from maskkit.cli.train import annotated, preset_in
from maskkit.config import InputConfig, ModelConfig, change
from maskkit.errors import DataError
from maskkit.ranges import Count
from maskkit.terminal import say


@dataclass
class ImportOptions:
    """Convert a checkpoint of a method's official code to a maskkit checkpoint.

    Only tensors and arrays of a file are read; a pickle that would run code is refused. Weights that were trained on
    other classes than the preset's take --classes or --num-classes; those of a model that differs, its --model options.

    Example: maskkit import yolact_resnet50_54_800000.pth --model yolact-resnet50 --out yolact-resnet50.safetensors

    Example: maskkit import pets.pth --model solov2-resnet50-3x --classes pets.txt --out pets.safetensors

    Example: maskkit import model_final_f07440.pkl --model mask2former-swin-t --model.task panoptic
    --classes coco-panoptic --out panoptic.safetensors
    """

    checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")]
    """File of the official code: .pth, .pkl, .params or .safetensors, whatever its name; or hf://user/name[/FILE]."""
    preset: Annotated[str, arg(name="model")]
    """Preset that the checkpoint was trained as; `maskkit models` lists them."""
    model: ModelConfig
    input: InputConfig
    out: Path
    """File to write."""
    num_classes: Count | None = None
    """Number of classes, without background, where it is not the preset's."""
    fetch: Annotated[Fetch, arg(name="")] = Fetch()  # noqa: RUF009 (frozen)
    classes: str | None = None
    """Names of the classes: a text file with a name per line, a .json file (a list of names, COCO's categories,
    classes.json, transformers' config.json), or coco, coco-91, coco-panoptic, voc, voc-semantic, ade20k, cityscapes,
    cityscapes-things, cityscapes-panoptic, camvid."""


def import_(options: ImportOptions) -> int:
    """Convert a checkpoint of a method's official code to a maskkit checkpoint.

    Example: maskkit import yolact_resnet50_54_800000.pth --model yolact-resnet50 --out yolact-resnet50.safetensors
    """
    from maskkit import zoo
    from maskkit.checkpoints.class_lists import named_classes, numbered, read_classes
    from maskkit.checkpoints.foreign import read_foreign
    from maskkit.checkpoints.hub import import_state

    options.fetch.apply()
    preset, source, count = zoo.preset(options.preset), options.checkpoint, options.num_classes
    task = zoo.model_class(preset.name).task_of(options.model)
    classes, named = preset.classes, ""
    if options.classes is not None:
        classes = read_classes(options.classes, task)
        if count not in (None, len(classes)):
            wrong_usage(f"--num-classes is {count}, --classes names {len(classes)}")
    elif count not in (None, len(classes)):
        classes, named = numbered(count, task), "; they are called class 1 and so on, --classes gives them names"  # type: ignore[arg-type]
    try:
        state, names = read_foreign(_file(source))
        if names and options.classes is None and count is None and len(names) != len(classes):
            classes, named = named_classes(names, task), ", as the file names them"
        model = change(options.model, num_classes=len(classes))
        name = source if source.startswith("hf://") else Path(source).name
        import_state(state, preset.name, options.out, name, model, options.input, classes)
    except DataError as error:
        message = str(error)
        raise DataError(message if source in message else f"{source}: {message}") from None
    say(f"{options.out}: {preset.name} with {len(classes)} classes{named}")
    say(f"try it: maskkit predict IMAGE --model {options.out}")
    return 0


def _file(source: str) -> Path:
    if not source.startswith("hf://"):
        return Path(source)
    from maskkit.checkpoints.hub import fetch_weights

    return fetch_weights(source)


def parse(args: list[str]) -> ImportOptions:
    """The options of `import_`: the preset named in ``args``, overridden by the rest of ``args``."""
    name, preset = preset_in(args)
    model = annotated(preset.model, num_classes=tyro.conf.Suppress[int])  # --num-classes, and --classes
    default = ImportOptions(tyro.MISSING, name or tyro.MISSING, model, preset.input, tyro.MISSING)
    options = tyro.cli(ImportOptions, args=args, default=default, prog="maskkit import")
    options.model = type(preset.model)(**vars(options.model))
    for section in ("model", "input"):
        refuse_ranges(getattr(options, section), f"--{section}.")
    if options.num_classes is not None and options.num_classes < 1:
        wrong_usage(f"--num-classes {options.num_classes}: not 1 or more")
    return options
