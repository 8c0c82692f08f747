"""The rules of docs/architecture.md, each one as a test."""

import ast
import re
import tomllib
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest

import maskkit
from maskkit import zoo
from maskkit.checkpoints.checkpoint import run_config
from maskkit.config import RunConfig, to_dict
from maskkit.models.base import LOSS_KEYS
from maskkit.zoo.card import Preset, Weights

ROOT = Path(maskkit.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
FLOORS = (
    ("geometry", "config", "errors", "files", "plain_types", "processes", "ranges", "terminal"),
    ("prediction",),
    ("targets",),
    ("data", "decode"),
    ("nn",),
    ("models",),
    ("zoo",),
    ("checkpoints",),
    ("infer", "eval"),
    ("engine", "export", "serve", "cluster"),
    ("api",),
    ("cli",),
)
"""Bottom up: a module imports from its own floor or from one below it."""
HAND_OVER = {("prediction", "infer.draw"), ("prediction", "infer.interop")}
"""``Prediction.save`` and ``to_supervision``, hand over to the drawing when they are called."""
TORCH_FREE = (
    "prediction",
    "decode",
    "errors",
    "files",
    "geometry.rle",
    "geometry.polygons",
    "geometry.resample",
    "geometry.rectangles",
    "infer.predict",
    "infer.preprocess",
    "infer.runtimes",
    "infer.draw",
    "infer.prelabel",
    "infer.teaching_order",
    "infer.tiles",
    "infer.track",
    "infer.video",
    "infer.video_writer",
    "data.dataset",
    "data.formats",
    "eval",
    "checkpoints.header",
    "checkpoints.exported",
    "checkpoints.find",
    "checkpoints.repositories",
    "export.check",
    "serve",
    "cluster",
)
"""Rooms that work where torch cannot be imported."""
HEAVY = ("torch", "torchvision", "timm", "accelerate", "safetensors")
GONE = (
    r"pictures?",
    r"objections?",
    r"hazy",
    r"inward|outward",
    r"waves?",
    r"(many|several|more) views|ways of looking|ManyViews|with_views|--views",
    r"Selected[A-Z]\w+",
    r"finish\.py",
    r"by heart",
    r"is right now",
    r"so many cases",
    r"the judge of",
    r"to the (byte|letter)",
    r"in hand",
)
"""Words of the private language of the first edition; docs/glossary.md has the field's."""


def modules() -> dict[str, Path]:
    """Dotted name, below ``maskkit``, to file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
CODE = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}


def imports(code: str) -> set[str]:
    """Modules of the package that a file imports anywhere, but for annotations alone (``if TYPE_CHECKING``)."""
    tree = ast.parse(code)
    typing_only = {
        id(inner)
        for node in (ast.walk(tree) if "TYPE_CHECKING" in code else ())
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "maskkit":
            base = node.module.partition(".")[2]
            for alias in node.names:
                full = f"{base}.{alias.name}" if base else alias.name
                found.add(full if full in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("maskkit.")}
    return found - {""}


@cache
def imports_of(name: str) -> set[str]:
    """What the module ``name`` imports of the package; nothing for a name that is no module."""
    return imports(CODE[name]) if name in CODE else set()


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name.split(".")[0] in rooms)


def test_imports_point_down() -> None:
    assert not [
        f"{name} is below {other}"
        for name in MODULES
        if name not in ("", "__main__")
        for other in imports_of(name)
        if floor(other) > floor(name) and (name, other) not in HAND_OVER
    ]


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail(" -> ".join((*path[path.index(name) :], name)))
        if name not in done:
            for other in sorted(o for o in imports_of(name) if (name, o) not in HAND_OVER):
                visit(other, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_no_model_imports_another() -> None:
    for name in MODULES:
        if name.startswith("models.") and name != "models.base":
            others = {m for m in imports_of(name) if m.startswith("models.")} - {"models.base"}
            assert not others, name


def test_the_torch_free_rooms_import_no_torch() -> None:
    """At module level, themselves and all that they import; tests/test_torch_free.py runs them without torch."""
    rooms = {n for n in MODULES if any(n == room or n.startswith(f"{room}.") for room in TORCH_FREE)}
    seen: set[str] = set()
    while rooms:
        name = rooms.pop()
        seen.add(name)
        for node in ast.parse(CODE[name]).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for imported in names:
                assert imported.split(".")[0] not in HEAVY, f"{name}: {imported}"
                inner = imported.partition(".")[2] if imported.startswith("maskkit") else ""
                rooms |= {m for m in (inner,) if m in MODULES and m and m not in seen}


def test_files_are_short() -> None:
    lines = {name: len(CODE[name].splitlines()) for name in MODULES}
    assert not {name: count for name, count in lines.items() if count > 400}


PRESETS = zoo.presets()


def missing(preset: Preset) -> list[str]:
    """What the card of a preset does not say."""
    method, weights = zoo.method(preset.name), preset.weights
    supervision = method.model.supervision_of(preset.model)
    checks = {
        "it is not found by its name": zoo.preset(preset.name) is preset,
        "a name for each class": len(preset.classes) == preset.model.num_classes,
        "the paper's result": preset.paper is None or preset.paper.strip(),
        "our result": preset.ours is None or preset.ours.strip(),
        "source and licence of its weights": weights is None or (weights.source and weights.licence),
        "title, paper and agreement of its method": method.title and method.paper and method.agreement,
        "what it learns from": supervision and supervision <= {"masks", "boxes", "tags", "label_map"},
        "the names in its weights": method.rename is not None or weights is None,
    }
    return [name for name, is_there in checks.items() if not is_there] + (mistakes(weights) if weights else [])


def test_every_card_is_complete() -> None:
    found = {preset.name: missing(preset) for preset in PRESETS}
    assert not {name: lacks for name, lacks in found.items() if lacks}


RESTRICTED = re.compile(r"\bNC\b|non-?commercial|academic|research|no licence|unknown|other", re.IGNORECASE)
"""What a licence is called that does not allow every use."""


def mistakes(weights: Weights) -> list[str]:
    """What a card says of published weights that cannot be true, or that a download cannot use."""
    address = urlsplit(weights.url)
    checks = {
        "an address and a name in torchvision": not (weights.url and weights.torchvision),
        "an address without https, host or file": not weights.url
        or (address.scheme == "https" and address.netloc and PurePosixPath(address.path).suffix),
        "sha256 is no 8 to 64 hexadecimal digits": re.fullmatch(r"([0-9a-f]{8,64})?", weights.sha256),
        "md5 is no 6 to 32 hexadecimal digits": re.fullmatch(r"([0-9a-f]{6,32})?", weights.md5),
        "a checksum or a size of no address": weights.url or not (weights.sha256 or weights.md5 or weights.bytes),
        "a size that is none": weights.bytes is None or weights.bytes > 0,
        "non_commercial against the licence": weights.non_commercial == bool(RESTRICTED.search(weights.licence)),
    }
    return [name for name, is_fine in checks.items() if not is_fine]


def test_what_a_card_cannot_say_of_weights() -> None:
    file = Weights("a zoo", "MIT").at("https://example.org/zoo/net_20200316-afc5f8a2.pth")
    assert (file.sha256, file.md5) == ("afc5f8a2", "")
    other = Weights("another", "MIT").at("https://example.org/137260431/model_final_a54504.pkl")
    assert (other.sha256, other.md5) == ("", "a54504")
    assert not mistakes(file)
    for wrong in (
        replace(file, torchvision="W.COCO_V1"),
        replace(file, url="http://example.org/net.pth"),
        replace(file, url="https://example.org/"),
        replace(file, sha256="afc5"),
        replace(file, url=""),
        replace(file, bytes=0),
        replace(file, licence="CC-BY-NC-4.0"),
        replace(file, non_commercial=True),
    ):
        assert len(mistakes(wrong)) == 1, wrong


def test_every_config_travels_as_plain_types() -> None:
    for preset in PRESETS:
        config = RunConfig(preset.name, preset.model, preset.input, preset.augment, preset.train)
        assert run_config(to_dict(config)) == config


def test_presets_have_names_of_their_own() -> None:
    names = [preset.name for preset in PRESETS]
    assert len(set(names)) == len(names)


def knobs(config: object, path: str = "") -> dict[str, type]:
    """Dotted names of all fields of a config and of its parts."""
    found = {}
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        found |= knobs(value, f"{path}{field.name}.") if is_dataclass(value) else {f"{path}{field.name}": type(value)}
    return found


@pytest.mark.parametrize("method", sorted(set(zoo.METHODS.values())))
def test_every_knob_is_read(method: str) -> None:
    """Somewhere in the model's file, or in what it is built from, each field of the config is read."""
    found = zoo.methods()[next(name for name, module in zoo.METHODS.items() if module == method)]
    start = found.model.__module__.removeprefix("maskkit.")
    reached, todo = set(), {start, "models.base", "config"}
    while todo:
        name = todo.pop()
        reached.add(name)
        todo |= {m for m in imports_of(name) if m.startswith("nn.") and m not in reached}
    code = "\n".join(CODE[name] for name in sorted(reached))
    for preset in found.presets:
        unread = [k for k in knobs(preset.model) if not re.search(rf"\.{k.rpartition('.')[2]}\b", code)]
        assert unread in ([], ["num_classes"] if len(preset.classes) == 1 else []), preset.name


def test_models_are_not_told_apart_by_their_type() -> None:
    for name in MODULES:
        if name.split(".")[0] in ("engine", "infer", "eval", "checkpoints", "api", "cli", "export"):
            code = CODE[name]
            assert not re.search(r"(hasattr|isinstance)\((self\.)?(model|network|net|segmenter\.model)\b", code), name


def test_only_the_terminal_prints() -> None:
    """`maskkit.terminal` escapes what a terminal would obey; nothing is printed past it."""
    for name in MODULES:
        if name != "terminal":
            code = CODE[name]
            past = r"(?<![.\w])(?<!def )print\(|from rich\.console import .*Console\b|std(out|err)\.write\("
            assert not re.search(past, code), f"{name}: use say, complain or Console of maskkit.terminal"


def test_the_contract_is_typed() -> None:
    assert not re.search(r"\bAny\b", (ROOT / "models" / "base.py").read_text(encoding="utf-8"))


def test_losses_have_five_names() -> None:
    assert LOSS_KEYS == ("classification", "box", "mask", "quality", "semantic")


def test_the_contract_is_checked_strictly() -> None:
    pyright = PROJECT["tool"]["pyright"]
    rooms = ["prediction.py", "decode", "models/base.py", "zoo"]
    assert pyright["strict"] == [f"src/maskkit/{room}" for room in rooms]
    assert pyright["typeCheckingMode"] == "basic"
    off = [rule for rule, setting in pyright.items() if rule.startswith("report") and setting is False]
    assert off == ["reportPrivateImportUsage"]
    for room in rooms:
        path = ROOT / room
        for file in path.rglob("*.py") if path.is_dir() else [path]:
            assert "# pyright:" not in file.read_text(encoding="utf-8"), f"{file} switches rules off"


def test_core_dependencies_are_permissive() -> None:
    for line in PROJECT["project"]["dependencies"]:
        package = re.split(r"[^\w-]", line)[0]
        licence = licence_of(metadata.distribution(package))
        assert PERMISSIVE.search(licence), f"{package}: {licence}"
        assert not COPYLEFT.search(licence), f"{package}: {licence}"


PERMISSIVE = re.compile(r"\b(MIT|BSD|Apache|PSFL?|Python Software Foundation|HPND|ISC|MPL-2\.0)\b")
COPYLEFT = re.compile(r"\b[AL]?GPL|General Public License|non-?commercial|proprietary", re.IGNORECASE)


def licence_of(package: metadata.Distribution) -> str:
    """What a package declares: an expression, else classifiers, else a short text, else the title of its file."""
    about: Any = package.metadata
    if "License-Expression" in about:
        return about["License-Expression"]
    classifiers = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    text = about.get("License", "").strip()
    files = [file for file in package.files or () if file.name.startswith("LICEN")]
    if classifiers or text:
        return "; ".join(classifiers) or text.splitlines()[0]
    return files[0].read_text(encoding="utf-8").lstrip()[:100] if files else "none declared"


REPOSITORY = Path(__file__).parents[1]
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "src/**/*.py",
        "src/**/*.html",
        "tests/**/*.py",
        "benchmarks/*",
        "examples/*",
    )
    for path in REPOSITORY.glob(pattern)
    if path.suffix in (".md", ".py", ".html")
    and "goldens" not in path.parts  # as the official implementations were run
    and path != Path(__file__)
)


def test_the_private_language_is_gone() -> None:
    gone, found = re.compile(rf"(?<!\w)({'|'.join(GONE)})\b"), {}
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        if path.name == "glossary.md":  # its last table names the words that are not used
            text = text.partition("## Words that are not used")[0]
        if words := {m.group(0) for m in gone.finditer(text)}:
            found[str(path.relative_to(REPOSITORY))] = sorted(words)
    assert not found


@pytest.mark.parametrize("folder", ["benchmarks", "examples"])
def test_scripts_stand_alone(folder: str) -> None:
    """They import the package and their folder's common files, and name no folder of one machine."""
    for path in (REPOSITORY / folder).glob("*.py"):
        text = path.read_text(encoding="utf-8")
        stems = {other.stem for other in path.parent.glob("*.py")}
        others = {stem for stem in stems if not stem.startswith("common")} | {"tests", "benchmarks", "examples"}
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
        assert not imported & others, path.name
        assert "../shared" not in text, path.name
