"""What the pages tell people to type: the commands and the Python blocks of README.md and docs/."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
    if not {"generated", "_build"} & set(path.relative_to(ROOT).parts)
)
PLACES = {
    "PRESET": "yolact-mobilenetv2-320",
    "MODEL": "built-in",
    "SMALL": "yolact-mobilenetv2-320",
    "FORMAT": "coco",
    "SEED": "0",
    "SIZE": "320",
    "N": "2",
}
"""Words in capitals that stand for a value of a certain kind; others stand for a file."""
COMMAND = re.compile(r"(?:^|-m |=)maskkit (.+)")


@dataclass(frozen=True)
class Line:
    """A command line of a page."""

    page: str
    text: str
    inline: bool
    """Within a sentence or a table, where it may be short."""

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def arguments(self) -> list[str]:
        """What follows ``maskkit``, with values for placeholders and the first of alternatives."""
        text = re.sub(r"[\[\]]", " ", self.text.replace(" ...", " "))
        words = [re.sub(r"^([\w.-]+)(\|[\w.-]+)+$", r"\1", word) for word in shlex.split(text, comments=True)]
        return [PLACES.get(word, word) for word in words]


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    """Language and content of the fenced blocks of a page."""
    found = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    yield from found


def lines(path: Path) -> Iterator[Line]:
    """The ``maskkit`` lines of a page, those in blocks first."""
    page, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for language, block in blocks(path):
        if language in ("", "bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if found := COMMAND.search(line.strip()):
                    yield Line(page, found[1], False)
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", plain):
        if found := re.match(r"(?:torchrun .*-m )?maskkit (.+)", code):
            yield Line(page, found[1], True)


LINES = [line for page in PAGES for line in lines(page)]
