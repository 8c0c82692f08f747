"""The page in a browser: Debian's Chromium, driven by Playwright; skipped where there is none."""

import shutil
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from maskkit.geometry import rle
from tests.serve.conftest import Running, png
from tests.serve.fake import CATEGORIES
from tests.serve.test_api import written

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here; on Debian: apt-get install chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
SPOT = """() => {
    const n = shape.map.findIndex(owner => owner === 1), view = document.getElementById("view");
    const {left, top} = view.getBoundingClientRect();
    return [left + place.x + place.k * (n % shape.w + 1.5), top + place.y + place.k * (Math.floor(n / shape.w) + 1.5)];
}"""
"""Where the first object is on the screen."""
UNNAMED = """() => [...document.querySelectorAll("button, input, select, [tabindex], img")].filter(
    e => !(e.textContent.trim() || e.ariaLabel || e.alt || e.labels?.length || e.getAttribute("aria-labelledby")
        || e.querySelector("img[alt]"))).map(e => e.outerHTML)"""
"""Controls without a name for a screen reader."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, service: Running) -> Iterator[Any]:
    """The page, which may ask nothing of any other host, and may not fail."""
    context = browser.new_context(viewport={"width": 1100, "height": 700}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(service.url)
    page.wait_for_selector("#samples img >> nth=2")
    yield page
    assert {urlsplit(url).hostname for url in urls if not url.startswith(("blob:", "data:"))} == {"127.0.0.1"}
    assert not [fault for fault in faults if "status of 422" not in fault]  # what Chromium says of a bad image
    context.close()


def download(page: Any, button: str) -> bytes:
    with page.expect_download() as found:
        page.click(button)
    return Path(found.value.path()).read_bytes()


def until(page: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own way is forbidden by the page's policy for scripts."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def count_of_objects(page: Any, count: int) -> None:
    until(page, f"document.querySelectorAll('#objects li').length === {count}")


def test_masks_slider_classes_and_downloads(
    page: Any, service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [png(seed=1), png((90, 40), seed=2)]
    expected = written(images, tmp_path, monkeypatch)
    (strict := tmp_path / "strict").mkdir()
    disc = written(images, strict, monkeypatch, "--score", "0.06", "--classes", "disc")
    page.set_input_files("#files", [tmp_path / "0.png", tmp_path / "1.png"])
    page.wait_for_selector("#json:enabled")
    count_of_objects(page, 3)
    assert page.evaluate("shape.map.some(owner => owner > 0)")
    assert page.inner_text("#strip li:nth-child(2) span") == "3"
    assert (
        page.get_attribute("#view", "aria-label")
        == f"0.png: 3 objects: disc 0.90, ring 0.70, {CATEGORIES.names[2]} 0.55"
    )
    assert download(page, "#json").decode() == expected
    seen = page.screenshot()

    asked = len([r for r in service.records if r["route"] == "/v1/predict"])
    page.fill("#score", "0.6")
    count_of_objects(page, 2)
    page.fill("#score", "1")
    count_of_objects(page, 0)
    assert not page.evaluate("shape.map.some(owner => owner > 0)")
    assert page.screenshot() != seen
    page.fill("#score", "0.06")
    page.click("#none")
    count_of_objects(page, 0)
    page.get_by_label("disc").check()
    count_of_objects(page, 2)
    assert download(page, "#json").decode() == disc
    assert len([r for r in service.records if r["route"] == "/v1/predict"]) == asked

    page.click("#all")
    page.fill("#score", "0.5")
    rows = service.predict(images[0]).json()["predictions"]
    labels = np.asarray(Image.open(BytesIO(download(page, "#labels"))))
    masks = [rle.decode([row["segmentation"]], (48, 64))[0] for row in rows]
    order = np.argsort([-mask.sum() for mask in masks], kind="stable")
    painted = np.zeros((48, 64), np.uint8)
    for n in order:
        painted[masks[n]] = n + 1
    assert (labels == painted).all()
    overlay = np.asarray(Image.open(BytesIO(download(page, "#overlay"))).convert("RGB"))
    plain = np.asarray(Image.open(BytesIO(images[0])))
    assert (overlay[painted == 0] == plain[painted == 0]).all()
    assert (overlay[painted > 0] != plain[painted > 0]).any(1).mean() > 0.9


def test_pointer_and_keyboard(page: Any, service: Running, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(colour=(90, 90, 90)))
    (tmp_path / "b.png").write_bytes(b"no image")
    page.set_input_files("#files", [tmp_path / "a.png", tmp_path / "b.png"])
    count_of_objects(page, 3)
    spot = page.evaluate(SPOT)
    page.mouse.move(*spot)
    page.wait_for_selector("#tip:visible")
    assert page.inner_text("#tip") == "disc 0.90"
    page.mouse.click(*spot)
    assert page.inner_text("#state") == "a.png: disc 0.90 alone"
    page.mouse.wheel(0, -400)
    until(page, "place.k > 12")

    # without a pointer: from the top of the page by Tab to the list, then to the image
    page.focus("#files")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "objects":
            break
    else:
        raise AssertionError("Tab does not reach the list")
    page.keyboard.press("Escape")
    assert page.inner_text("#state").startswith("a.png: 3 objects")
    for key in ("ArrowDown", "End", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    assert page.get_attribute("#objects [aria-selected=true]", "id") == page.get_attribute(
        "#objects", "aria-activedescendant"
    )
    assert page.inner_text("#state") == "a.png: ring 0.70 alone"
    page.focus("#view")
    before = page.evaluate("place.x")
    for key in ("ArrowRight", "+", "Escape"):
        page.keyboard.press(key)
    assert page.evaluate("place.x") != before
    page.keyboard.press("0")
    assert page.evaluate("isolated") == -1

    page.focus("#strip li:nth-child(2) button")
    page.keyboard.press("Enter")
    page.wait_for_selector("#state.bad")
    assert page.inner_text("#state").startswith("b.png: the encoded image: not an image")
    assert not page.is_enabled("#overlay")
    page.keyboard.press("Tab")
    page.click("#clear")
    page.click("#samples button >> nth=0")
    until(page, "current.state === 'done' && current.size[0] > 100")
    page.click("#camera")
    until(page, "document.getElementById('video').videoWidth > 0")
    page.click("#take")
    until(page, "images.length === 2 && images[1].state === 'done'")
    page.click("#theme")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.slow
def test_the_page_asks_for_the_token(browser: Any, other: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with other(token="a-token-of-a-service") as service:
        page = browser.new_page()
        page.goto(service.url)
        for token in ("wrong", "a-token-of-a-service"):
            page.wait_for_selector("#login[open]")
            page.fill("#token", token)
            page.keyboard.press("Enter")
        page.wait_for_selector("#samples img >> nth=2")
        page.set_input_files("#files", [tmp_path / "a.png"])
        count_of_objects(page, 3)
        page.close()


def test_every_control_has_a_name(page: Any) -> None:
    assert not page.evaluate(UNNAMED)


def test_the_page_is_small_and_whole() -> None:
    import maskkit.serve.app

    path = Path(maskkit.serve.app.__file__).parent / "page" / "index.html"
    assert path.stat().st_size < 60_000
    assert "http" not in path.read_text(encoding="utf-8")
