"""The report of a check in a real browser: it renders without errors, offline, on laptops and phones."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from serving_check.report.html import render
from serving_check.schema import Report
from tests.html_page import HOSTILE, LONG
from tests.serving_check.report import realistic_reports
from tests.serving_check.report.realistic_reports import picture
from tests.serving_check.report.sample_report import sample

pytestmark = pytest.mark.integration

LAPTOP, PHONE = (1280, 800), (390, 844)
PAYLOAD = (
    "<img src=x onerror='window.broken=1;alert(1)'><svg onload='window.broken=1'></svg></style><script>window.broken=1"
    "</script><a href='javascript:window.broken=1'>x</a><iframe src='file:///etc/hostname'></iframe>" + "".join(HOSTILE)
)


@dataclass
class Activity:
    """Errors, dialogs and network requests of a page."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
@pytest.mark.parametrize("report", [realistic_reports.passed(), realistic_reports.failed()], ids=["passed", "failed"])
def test_the_page_renders_with_its_verdict_above_the_fold(
    browser: Browser, tmp_path: Path, report: Report, size: tuple[int, int], scheme: str
) -> None:
    with opened(browser, tmp_path, report, size, scheme) as (page, activity):
        assert_no_errors_and_no_overflow(page, activity, tmp_path, size)
        verdict = page.get_by_role("heading", level=1)
        assert verdict.inner_text().strip() == ("Passed" if report.passed else "Failed")
        for element in (verdict, page.locator(".verdict .lead")):
            box = element.bounding_box()
            assert box and box["y"] >= 0 and box["y"] + box["height"] <= size[1] / 2
        if not report.passed:
            assert page.locator(".misses li").count() == 3
            box = page.locator(".misses li").first.bounding_box()
            assert box and box["y"] + box["height"] <= size[1]
        ink, paper = (brightness(page, name) for name in ("color", "backgroundColor"))
        assert (ink > paper) == (scheme == "dark")


def test_pictures_match_their_items_and_charts_are_visible(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path, realistic_reports.passed(), LAPTOP) as (page, _):
        page.locator("#examples details").evaluate_all("all => all.forEach(one => one.open = true)")
        shown = page.locator(".picture:not(.empty)")
        assert shown.count() > 120
        widths = shown.evaluate_all(
            """found => Promise.all(found.map(async one => {
                const image = new Image();
                image.src = getComputedStyle(one).backgroundImage.slice(5, -2);
                await image.decode();
                return image.naturalWidth;
            }))"""
        )
        assert min(widths) > 0
        first = page.locator(".pictured li").first
        assert difference(first.locator(".picture"), str(first.get_attribute("title"))) < 20
        charts = page.locator("figure svg, .file svg")
        assert charts.count() == 9  # one trade-off, two latencies, two files and four curves
        for index in range(charts.count()):
            box = charts.nth(index).bounding_box()
            assert box and box["width"] > 100 and box["height"] > 20


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
@pytest.mark.parametrize("text", [PAYLOAD, LONG, "x" * 5000], ids=["hostile", "long", "one long word"])
def test_hostile_and_long_data_neither_run_nor_break_the_page(
    browser: Browser, tmp_path: Path, size: tuple[int, int], text: str
) -> None:
    with opened(browser, tmp_path, sample(text, failed=True), size) as (page, activity):
        page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        page.mouse.move(size[0] / 2, size[1] / 2)
        assert_no_errors_and_no_overflow(page, activity, tmp_path, size)
        assert page.evaluate("window.broken") is None
        assert page.locator("script, iframe, a[href^=javascript]").count() == 0


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
@pytest.mark.parametrize("report", [realistic_reports.of_texts(), realistic_reports.unopened()])
def test_a_sparse_report_renders(browser: Browser, tmp_path: Path, report: Report, size: tuple[int, int]) -> None:
    with opened(browser, tmp_path, report, size) as (page, activity):
        assert_no_errors_and_no_overflow(page, activity, tmp_path, size)
        assert page.locator(".picture").count() == 0


def test_navigation_links_resolve(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path, realistic_reports.passed(), PHONE) as (page, _):
        links = page.locator("nav a")
        assert links.count() == 10
        for link in links.all():
            link.click()
            assert page.evaluate("document.querySelector(':target')?.getBoundingClientRect().height > 0")


@contextlib.contextmanager
def opened(
    browser: Browser, folder: Path, report: Report, size: tuple[int, int], scheme: str = "light"
) -> Iterator[tuple[Page, Activity]]:
    """Opens a report from a file."""
    path = folder / "report.html"
    path.write_text(render(report, picture), encoding="utf-8")
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    activity = Activity()
    page.on("console", lambda message: activity.errors.append(message.text))
    page.on("pageerror", lambda error: activity.errors.append(str(error)))
    page.on("request", lambda request: activity.requests.append(request.url))

    def dismiss(dialog: object) -> None:
        activity.errors.append("a dialog")
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", dismiss)
    try:
        page.goto(path.as_uri())
        yield page, activity
    finally:
        page.close()


def assert_no_errors_and_no_overflow(page: Page, activity: Activity, folder: Path, size: tuple[int, int]) -> None:
    """Asserts that the page had no errors, loaded no resources, and is no wider than the window."""
    assert activity.errors == []
    assert [url for url in activity.requests if not url.startswith("data:")] == [(folder / "report.html").as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def brightness(page: Page, name: str) -> int:
    """Returns the sum of the red, green and blue values of one of the page's colours."""
    colour = page.evaluate(f"getComputedStyle(document.body)[{json.dumps(name)}]")
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")[:3])


def difference(element: Locator, id: str) -> float:
    """Returns the mean difference, out of 255, between the centres of an element's screenshot and an item's image."""
    encoded = picture(id)
    assert encoded
    images = [Image.open(io.BytesIO(data)).convert("RGB").resize((8, 8)) for data in (element.screenshot(), encoded)]
    pixels = [[image.getpixel((x, y)) for x in range(2, 6) for y in range(2, 6)] for image in images]
    differences = [abs(a - b) for one, other in zip(*pixels, strict=True) for a, b in zip(one, other, strict=True)]  # type: ignore[arg-type]
    return sum(differences) / len(differences)
