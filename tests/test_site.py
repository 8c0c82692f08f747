"""The site: pages that are made of the package, and the built site in a browser, opened as files."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.pages import ROOT
from tests.serve.test_page import BROWSER, FLAGS

pytest.importorskip("sphinx", reason="no extra maskkit[docs] here")

import site_links
import site_pages

from maskkit import zoo
from maskkit.zoo import tables

BUILT = ROOT / "docs" / "_build" / "html"


@pytest.mark.parametrize("method", tables.methods(), ids=lambda method: method.presets[0].name)
def test_the_page_of_a_method(method: Any) -> None:
    page = site_pages.method_page(method)
    assert page.startswith(f"# {method.title}\n")
    assert all(f"`{preset.name}`" in page for preset in method.presets)
    drawing = site_pages.drawing(method)
    assert drawing.splitlines()[-1] == "Prediction"
    raw, chosen = drawing.partition("raw outputs")[::2]
    assert raw.count("\n    ") >= 1, "the docstring of the module has a table of the raw outputs"
    assert chosen.count("\n    ") >= 1


def test_the_reference_has_every_public_module() -> None:
    named = [module for modules in site_pages.packages().values() for module in modules]
    assert len(named) == len(set(named))
    assert {"maskkit", "maskkit.api", "maskkit.zoo.yolact", "maskkit.data.formats.coco"} <= set(named)
    assert not {name for name in named if "._" in name}


def test_links_out_of_the_folder_lead_to_the_repository() -> None:
    page = ROOT / "docs" / "benchmarks" / "speed.md"
    text = "[a](../deploy.md) [b](../../src/maskkit/decode) [c](../../CONTRIBUTING.md#x)"
    assert site_links.to_repository(text, page) == (
        "[a](../deploy.md) [b](https://github.com/maskkit/maskkit/tree/main/src/maskkit/decode) "
        "[c](https://github.com/maskkit/maskkit/blob/main/CONTRIBUTING.md#x)"
    )


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of Chromium that may ask for nothing but files, and may not fail."""
    if not (BUILT / "index.html").is_file():
        pytest.skip("the site is not built: make docs")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url),
        )
        yield page
        browser.close()
        assert not faults


def test_the_search_finds_boxes_only(page: Any) -> None:
    page.goto((BUILT / "index.html").as_uri())
    assert page.title() == "maskkit"
    page.fill("input[name=q] >> nth=0", "boxes only")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "links => links.map(link => link.getAttribute('href'))")
    assert any(link.startswith("boxes_only.html") for link in found[:5]), found[:5]
    page.click("#search-results li a >> nth=0")
    page.wait_for_selector("h1")


def test_every_method_has_a_page_in_the_built_site() -> None:
    if not (BUILT / "index.html").is_file():
        pytest.skip("the site is not built: make docs")
    there = {path.stem for path in (BUILT / "generated" / "methods").glob("*.html")}
    assert there == set(zoo.METHODS.values())
