"""The page of a check in a real browser: it renders without errors, offline, on a laptop and on a phone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser

from serving_check.report_html import render
from tests.html_page import HOSTILE
from tests.serving_check.sample_report import sample

pytestmark = pytest.mark.integration

SIZES = [(1280, 800), (390, 844)]
PAYLOAD = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>" + "".join(HOSTILE)


def picture(id: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (len(id) * 9 % 256, 90, 120)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_renders_and_nothing_of_the_data_runs(
    browser: Browser, tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(render(sample(PAYLOAD, failed=True), picture), encoding="utf-8")
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append("a dialog"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    try:
        assert complaints == []
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        assert page.evaluate("window.broken") is None
        assert page.locator("script").count() == 0
        verdict = page.locator(".verdict .mark")
        assert verdict.inner_text() == "Failed"
        box = verdict.bounding_box()
        assert box and box["y"] + box["height"] < height
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        pictures = page.locator(".picture:not(.empty)")
        assert pictures.count() >= 10
        backgrounds = pictures.evaluate_all("found => found.map(one => getComputedStyle(one).backgroundImage)")
        assert all("data:image/jpeg" in background for background in backgrounds)
        assert page.locator("svg").count() >= 4
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert (_brightness(ink) > _brightness(paper)) == (scheme == "dark")
    finally:
        page.close()


def _brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])
