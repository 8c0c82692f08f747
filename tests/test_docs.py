"""The pages tell the truth: the command line understands every line, and every block that can be run is run.

A line within a sentence or a table is parsed. A line of a block is run as well, on small data, unless `NOT_RUN` says
why it cannot be.
"""

import functools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from PIL import Image

import maskkit
from maskkit.cli import _PARSERS, VERBS, main
from maskkit.cli.options import checked
from maskkit.data import shapes
from tests.pages import LINES, PAGES, ROOT, Line, blocks
from tests.small import save_small

NOT_RUN = {
    r"--model (maskrcnn-resnet50|solov2-resnet50-3x)": "needs the network: published weights",
    r"^import ": "needs a published file; tests/zoo imports every kind",
    r"^serve ": "serves until it is stopped; tests/serve",
    r"^predict 0 ": "needs a camera",
    r"--cluster": "starts Ray; tests/cluster",
    r"^tune |runs/tune": "trains many times; tests/engine/test_tune.py",
    r"^docs/benchmarks/": "needs the data of the measurement",
}
"""Why a line of a block is only parsed: what it, or its page, matches."""
NOT_RUN_PYTHON = {
    "docs/architecture.md": "the contract, in brief",
    "docs/adding_a_method.md": "tests/test_adding_a_method.py runs it",
    "docs/scale.md": "reads what a cluster wrote; tests/cluster",
    "docs/weights.md": "needs an account of the Hugging Face Hub; tests/checkpoints/test_repositories.py has a stub",
}
SMALL = {
    "train": "--train.steps 1 --train.batch 2 --train.workers 0 --train.eval-every 0 --weights random --out r",
    "pseudo-masks": "--model eps-mobilenetv2-256 --steps 1 --tta.scales 1 --device cpu",
    "prelabel": "--out r",
}
"""What makes a command quick; it replaces the same options of the page."""
ALIKE = {"corrected": "pets", "boxes": "pets-boxes", "tags": "pets-tags", "saliency": "pets-saliency"}
ALIKE |= {"more-photos": "photos"}
"""Folders that pages call otherwise."""
SIDE = 64
"""Of the images, in pixels."""


def reason(line: Line) -> str | None:
    """Why a line of a block is not run."""
    return next((why for key, why in NOT_RUN.items() if re.search(key, line.text) or re.search(key, line.page)), None)


def understood(arguments: list[str]) -> bool:
    """Whether the parser of the verb takes ``arguments``; nothing is run."""
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb in ("train", "tune"):
            if "--config" in rest:  # a file of settings, that of the data too, which is not there
                rest = [*without(rest, "--config"), "--data", "pets"]
            rest = rest if "--model" in rest else ["--model", "yolact-mobilenetv2-256", *rest]
        if verb in _PARSERS:
            _PARSERS[verb](rest)
        else:
            tyro.cli(checked(_only_parsed(verb)), prog=f"maskkit {verb}", args=rest)
    except SystemExit as end:
        return end.code in (0, None)  # --help
    return True


def _only_parsed(verb: str) -> Any:
    """A function with the options of the verb that does nothing."""

    @functools.wraps(VERBS[verb])
    def nothing(*_: Any, **__: Any) -> int:
        return 0

    return nothing


def completed(arguments: list[str]) -> list[str]:
    """A line within a sentence with what it leaves out: the data, the model, or the sources."""
    verb = arguments[0]
    options = dict.fromkeys(("train", "tune", "pseudo-masks", "eval"), ("--data", "pets"))
    options |= {"export": ("--model", "built-in", "--out", "a.onnx")}
    sources = {"predict": ["photo.jpg"], "prelabel": ["photos"], "check": ["pets"]}
    missing = options.get(verb, ())
    given = [
        w
        for name, value in zip(missing[::2], missing[1::2], strict=True)
        if name not in arguments
        for w in (name, value)
    ]
    before = sources.get(verb, []) if arguments[1].startswith("--") else []
    return [verb, *before, *arguments[1:], *given]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_command_line_understands_every_line(page: Path) -> None:
    name = page.relative_to(ROOT).as_posix()
    for line in dict.fromkeys(line for line in LINES if line.page == name):
        if line.text in ("VERB --help", "--help") or line.text.startswith("--version"):
            continue
        assert line.arguments[0] in VERBS, line
        if line.inline and len(line.arguments) == 1:  # the verb is named
            continue
        with redirect_stderr(StringIO()) as said, redirect_stdout(StringIO()):
            fits = understood(line.arguments)
            if line.inline and not fits:
                named = [*line.arguments, "64"]  # an option without its value
                fits = understood(completed(line.arguments)) or understood(completed(named))
        assert fits, f"{line}\n{said.getvalue()}"


def test_what_is_not_run_is_there() -> None:
    for key in NOT_RUN:
        assert any(re.search(key, line.text) or re.search(key, line.page) for line in LINES if not line.inline), key
    for page in NOT_RUN_PYTHON:
        assert any(language == "python" for language, _ in blocks(ROOT / page)), page


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all that the pages speak of: images, data sets, a video, checkpoints; the working directory."""
    root, before = tmp_path_factory.mktemp("world"), Path.cwd()
    os.chdir(root)
    shapes.write("pets", train=4, val=2, size=(SIDE, SIDE), objects=(2, 3))
    images = sorted(Path("pets/images").iterdir())
    boxes_alone(Path("pets"), Path("pets-boxes"))
    tagged(images, Path("pets-tags"), Path("pets-saliency"))
    with redirect_stdout(StringIO()):
        assert main(["convert", "pets", "pets-masks", "--to", "png"]) == 0
    for folder in ("photos", "holiday", "frames", "slides"):
        for number, image in enumerate(images[:2]):
            Path(folder).mkdir(exist_ok=True)
            Image.open(image).save(Path(folder, f"{number}.{'tif' if folder == 'slides' else 'png'}"))
    for name, copied in ALIKE.items():
        shutil.copytree(copied, name)
    shutil.copy(images[0], "photo.jpg")
    shutil.copy("slides/0.tif", "slide.tif")
    shutil.copytree("pets", "slides", dirs_exist_ok=True)
    film(images, Path("clip.mp4"))
    for run in ("pets", "pets-2", "nuclei", "boxes"):
        Path("runs", run).mkdir(parents=True)
        save_small(Path("runs", run, "best.safetensors"))
        Path("runs", run, "metrics.jsonl").write_text('{"step": 3, "val/AP": 0.5}\n')
    yield root
    os.chdir(before)


def boxes_alone(source: Path, target: Path) -> None:
    """The data set without its masks."""
    shutil.copytree(source, target)
    for path in target.glob("*.json"):
        data = json.loads(path.read_text())
        for annotation in data["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(data))


def tagged(images: list[Path], target: Path, saliency: Path) -> None:
    """Images with tags, and a saliency map of each."""
    saliency.mkdir()
    for number, image in enumerate(images[:4]):
        folder = target / ("disc", "ring")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder)
        bright = np.zeros((SIDE, SIDE), np.uint8)
        bright[16:48, 16:48] = 255
        Image.fromarray(bright).save(saliency / f"{image.stem}.png")


def film(images: list[Path], path: Path) -> None:
    """A video of a few frames."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for image in images[:3]:
            container.mux(stream.encode(av.VideoFrame.from_image(Image.open(image).convert("RGB"))))
        container.mux(stream.encode())


@pytest.mark.slow
def test_every_line_of_a_block_that_can_be_run_is_run(world: Path) -> None:
    done: set[str] = set()
    for line in LINES:
        if line.inline or reason(line) is not None:
            continue
        arguments = quick(line.arguments)
        if (command := shlex.join(arguments)) in done:
            continue
        done.add(command)
        shutil.rmtree("r", ignore_errors=True)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
            code = main([word for a in arguments for word in expanded(a)])
        assert code == 0, f"{line}\nrun as: maskkit {command}\n{said.getvalue()}"


def quick(arguments: list[str]) -> list[str]:
    """The command with the options of `SMALL` in place of its own."""
    added = SMALL.get(arguments[0], "").split()
    if "--train.minutes" in arguments:
        added += ["--train.minutes", "0"]
    kept = without(arguments, *(word for word in added if word.startswith("--")))
    if arguments[0] == "train" and "--input.size" not in arguments:
        added += ["--input.size", str(SIDE), str(SIDE)]
    return kept + added


def without(arguments: list[str], *options: str) -> list[str]:
    """The arguments without some options and their values."""
    kept, skip = [], False
    for word in arguments:
        skip = word in options if word.startswith("--") else skip
        if not skip:
            kept.append(word)
    return kept


def expanded(word: str) -> list[str]:
    """The files that a shell makes of a pattern."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [word]


def python_of(page: Path) -> str:
    """The Python blocks of a page, in order."""
    return "\n".join(block for language, block in blocks(page) if language == "python")


RUN = [page for page in PAGES if python_of(page) and page.relative_to(ROOT).as_posix() not in NOT_RUN_PYTHON]
WITH_PYTHON = [
    pytest.param(
        page, id=page.relative_to(ROOT).as_posix(), marks=[pytest.mark.slow] * ("pets.onnx" in python_of(page))
    )
    for page in RUN
]
"""Exporting takes its time."""


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run(page: Path, world: Path) -> None:
    """In the order of the page, with ``model`` a small one."""
    text = python_of(page)
    if "pets.onnx" in text and not Path("pets.onnx").exists():
        maskkit.load("runs/pets/best.safetensors").export("pets.onnx")
    names: dict[str, Any] = {"maskkit": maskkit}
    if not re.search(r"^model = ", text, re.MULTILINE):
        names["model"] = maskkit.load("runs/pets/best.safetensors")
    with redirect_stdout(StringIO()):
        exec(compile(text, str(page), "exec"), names)


def test_every_page_is_in_the_site() -> None:
    """Each is in a table of contents; a new page takes a line in docs/index.md."""
    docs = ROOT / "docs"
    listed = set()
    for page in PAGES:
        for kind, block in blocks(page):
            if kind == "{toctree}":
                names = [line for line in block.splitlines() if line and not line.startswith(":")]
                listed |= {found for name in names for found in page.parent.glob(f"{name}.md")}
    inside = {page for page in PAGES if docs in page.parents} - {docs / "index.md"}
    assert not inside - listed, sorted(str(page.relative_to(ROOT)) for page in inside - listed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_scripts_have_the_options_that_pages_give_them(folder: str) -> None:
    common = "".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("common*.py"))
    found = 0
    for page in [*PAGES, ROOT / "benchmarks" / "README.md"]:
        joined = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for script, options in re.findall(rf"python {folder}/(\w+\.py)([^\n`]*)", joined):
            text = (ROOT / folder / script).read_text(encoding="utf-8") + common
            for option in re.findall(r"(?<=[\s\[])--[a-z0-9-]+", options.partition("#")[0]):
                assert option == "--help" or f'"{option}"' in text, f"{page.name}: {script} has no {option}"
                found += 1
    assert found
