"""Generates docs/support.md: what every method can do, from the tests that showed it.

``make support`` runs the tests that all methods share and hands pytest's JUnit reports to this module. A cell says yes
where its test passed, and a dash where the method does not have this; without a test that it needs, or with one that
failed, there is no page.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from maskkit import zoo
from maskkit.errors import MaskkitError
from tests.models.conformance import Conformance

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "support.md"

LEARNS = "test_overfits_two_drawn_images"
BOXES = "test_boxes_alone_teach_masks"
EXPORT = "test_exported_files_give_what_pytorch_gives_and_decode_without_torch"
INT8 = "test_an_exported_file_of_eight_bits"
OPEN_SIZE = "test_an_exported_file_of_open_size"
BF16 = "test_bf16_loss_is_near_fp32"
SKIPPED = frozenset({BOXES})
"""Tests that skip methods without what they test."""


@dataclass(frozen=True)
class Seen:
    """What the reports say of one method."""

    tests: type[Conformance]
    passed: frozenset[str]
    """Tests that passed and were not skipped."""
    recorded: frozenset[str]
    """What they recorded as supported."""

    @property
    def preset(self) -> str:
        """The preset that a small model was made of."""
        return self.tests.preset

    def learns_from(self, *labels: str) -> bool:
        """Whether one of ``labels`` is enough for it, with which it overfitted."""
        return bool(zoo.model_class(self.preset).supervision_of(zoo.preset(self.preset).model) & set(labels))


@dataclass(frozen=True)
class Column:
    """A column of the page."""

    title: str
    test: str
    """The test that fills it."""
    says: str
    """What a yes means; where `why_not` is None, also what a dash means."""
    holds: Callable[[Seen], bool]
    why_not: Callable[[Seen], str] | None = None
    """Why a method does not have this."""


def _left_out(seen: Seen) -> bool:
    """Whether its tests leave out the one that trains it."""
    return getattr(seen.tests, LEARNS) is None


def _recorded(name: str, says: str, test: str = EXPORT, why_not: Callable[[Seen], str] | None = None) -> Column:
    return Column(name, test, says, lambda seen: name in seen.recorded, why_not)


COLUMNS = (
    Column(
        "train",
        LEARNS,
        "it overfits two drawn images",
        lambda seen: LEARNS in seen.passed,
        lambda seen: "only the small network of the same method is trained by the tests" if _left_out(seen) else "",
    ),
    Column(
        "masks",
        LEARNS,
        "masks are enough to train it, of semantic methods label maps; a dash: it reads none",
        lambda seen: seen.learns_from("masks", "label_map"),
    ),
    Column(
        "boxes",
        BOXES,
        "boxes without masks are enough; detectors learn boxes from them, other methods masks; a dash: not enough",
        lambda seen: BOXES in seen.passed or seen.learns_from("boxes"),
    ),
    Column(
        "tags",
        LEARNS,
        "the classes in an image are enough; a dash: not enough",
        lambda seen: seen.learns_from("tags"),
    ),
    Column("bf16", BF16, "the losses under autocast agree with those in fp32", lambda seen: BF16 in seen.passed),
    _recorded("ONNX", "ONNX Runtime gives what PyTorch gives, and it is decoded without PyTorch"),
    _recorded("OpenVINO", "so does OpenVINO", why_not=lambda seen: seen.tests.no_openvino),
    _recorded("int8", "the convolutions of an ONNX file can be quantised", INT8),
    _recorded("open batch", "an exported file takes any number of images"),
    _recorded(
        "open size",
        "an exported file takes images of any size, on a ResNet-18 where the backbone of the small preset pads by the "
        "size of the image; a dash: parts of its graph are of one size, as `maskkit export --dynamic size` says",
        OPEN_SIZE,
    ),
    _recorded("tracked", "its objects can be followed in a video; a dash: it gives label maps or panoptic images"),
)

INTRODUCTION = """# What every method can do

`make support` writes this page from the tests that all methods share
([conformance.py](../tests/models/conformance.py)), each run with a small model of the method. A cell leads to the
file of the method's tests. One of them is run by the names of its class and of its test, such as
`pytest tests/models/test_fcos.py -k "TestFcos and overfits"`."""

WEIGHTS = """- **published weights**: presets that `--model` downloads, and others that are imported by hand
  ([weights](weights.md))."""


def page(found: Iterable[Seen]) -> str:
    """The page. Raises `MaskkitError` for a dash without a reason."""
    methods = sorted(found, key=lambda seen: (zoo.method(seen.preset).title.lower(), seen.preset, seen.tests.__name__))
    head = ("method", "a small model of", "tests", *(column.title for column in COLUMNS), "published weights")
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *map(row, methods)))
    legend = [f"- **{column.title}**: {column.says} (`{column.test}`)." for column in COLUMNS]
    return "\n".join([INTRODUCTION, "", *legend, WEIGHTS, "", table, *_reasons(methods)]) + "\n"


def _reasons(methods: list[Seen]) -> list[str]:
    """The part of the page that explains dashes, methods with the same reason in one line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for column in COLUMNS:
        for seen in methods:
            if column.why_not is not None and not column.holds(seen):
                reason = column.why_not(seen)
                if not reason:
                    raise MaskkitError(f"{seen.tests.__name__} has no {column.title} and does not say why")
                groups.setdefault((column.title, reason), []).append(f"`{seen.preset}`")
    lines = [f"- **No {title}**: {reason}: {', '.join(dict.fromkeys(who))}." for (title, reason), who in groups.items()]
    return ["", "## Why not", "", *lines] if lines else []


def read(*reports: Path) -> dict[str, Seen]:
    """What passed in any of the reports, by the name of the class of tests.

    Raises `MaskkitError` for a test that failed, and for one of the columns that no report has.
    """
    passed: dict[str, set[str]] = {}
    recorded: dict[str, set[str]] = {}
    for case in (c for report in reports for c in ElementTree.parse(report).getroot().iter("testcase")):
        name, test = case.get("classname", ""), case.get("name", "")
        if not name.startswith("tests.models."):
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            raise MaskkitError(f"{name}.{test} failed; there is no page without it")
        if case.find("skipped") is None:
            passed.setdefault(name, set()).add(test)
            found = {p.get("value", "") for p in case.iter("property") if p.get("name") == "support"}
            recorded.setdefault(name, set()).update(found)
    shared = {name: tests for name in passed if (tests := _tests(name)) is not None}
    for name in shared:
        needed = {column.test for column in COLUMNS if getattr(shared[name], column.test) is not None}
        if left := needed - SKIPPED - passed[name]:
            raise MaskkitError(f"no report has {name}.{min(left)}; run the slow tests too, with MASKKIT_THOROUGH=1")
    return {n: Seen(tests, frozenset(passed[n]), frozenset(recorded[n])) for n, tests in shared.items()}


def row(seen: Seen) -> tuple[str, ...]:
    """The row of one method."""
    method = zoo.method(seen.preset)
    file = f"../{Path(inspect.getfile(seen.tests)).relative_to(ROOT).as_posix()}"
    cells = [f"[yes]({file})" if column.holds(seen) else "-" for column in COLUMNS]
    fetched = [p.weights.fetched for p in method.presets if p.weights is not None]
    counts = [
        f"{sum(fetched)}" if any(fetched) else "",
        f"{len(fetched) - sum(fetched)} by hand" if not all(fetched) else "",
    ]
    weights = f"[{', '.join(filter(None, counts))}](../tests/zoo/test_sources.py)" if fetched else "-"
    return (method.title, f"`{seen.preset}`", f"[`{seen.tests.__name__}`]({file})", *cells, weights)


def _tests(name: str) -> type[Conformance] | None:
    """The class of shared tests of this name; None for the file of a test that one method has alone."""
    module, _, kind = name.rpartition(".")
    found = getattr(importlib.import_module(module), kind, None)
    return found if isinstance(found, type) and issubclass(found, Conformance) else None


def every() -> set[str]:
    """The names of all classes of shared tests."""
    modules = [importlib.import_module(f"tests.models.{file.stem}") for file in ROOT.glob("tests/models/test_*.py")]
    return {
        f"{m.__name__}.{name}"
        for m in modules
        for name in vars(m)
        if name.startswith("Test") and _tests(f"{m.__name__}.{name}")
    }


def main(*reports: Path) -> None:
    """Write the page. Raises `MaskkitError` where it would lack a method."""
    found = read(*reports)
    if left := every() - found.keys():
        raise MaskkitError(f"no report has {', '.join(sorted(left))}")
    PAGE.write_text(page(found.values()), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:]))
    except MaskkitError as error:
        sys.exit(str(error))
