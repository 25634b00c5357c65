"""The page of `searchforge serve` in a browser: interaction, and resistance to hostile data."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.infra.serve.serve_world import HOSTILE, HOSTILE_ID, HOSTILE_TEXT, Server, make_world, serving, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[Server]:
    with serving(world, "--release", "all", "--release", "half") as started:
        releases = lambda: started.ask("/releases").json["releases"]  # noqa: E731
        wait_for(lambda: all(release["pictures"]["state"] == "ready" for release in releases()))
        yield started


@pytest.fixture
def errors() -> list[str]:
    """Returns the errors in the browser's console; a test that expects some clears the list."""
    return []


@pytest.fixture
def page(browser: Browser, server: Server, errors: list[str]) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1280, "height": 860}, base_url=server.url)
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert errors == []


def _wait_for_pictures(page: Page, cards: int) -> None:
    """Waits until exactly `cards` hits are shown and their pictures have loaded."""
    script = (
        "count => { const found = [...document.querySelectorAll('.card img')];"
        " return found.length === count && found.every(each => each.complete && each.naturalWidth > 0); }"
    )
    page.wait_for_function(script, arg=cards)


def _assert_no_overflow(page: Page) -> None:
    width = page.viewport_size["width"] if page.viewport_size else 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_typed_query_shows_hits_with_pictures_scores_and_latency(page: Page) -> None:
    page.goto("/?release=all")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.keyboard.type("w12")  # the field has the focus
    page.keyboard.press("Enter")
    _wait_for_pictures(page, 10)
    assert page.locator(".card").first.get_attribute("title") == "00012.png"
    assert [int(text) for text in page.locator(".rank").all_text_contents()] == list(range(1, 11))
    scores = [float(text) for text in page.locator(".score").all_text_contents()]
    assert scores == sorted(scores, reverse=True)
    expect(page.locator(".stats strong")).to_contain_text(" ms")
    assert page.url.endswith("?q=w12&release=all")
    assert page.title().startswith("w12")


def test_a_url_restores_its_query(page: Page) -> None:
    page.goto("/?q=w3&where=parity%3Dodd&k=20&release=all")
    expect(page.locator(".card").first).to_be_visible()
    expect(page.get_by_label("What to look for")).to_have_value("w3")
    expect(page.locator(".chip")).to_have_text("parity=odd×")
    expect(page.locator("#count")).to_have_value("20")
    page.get_by_label("What to look for").fill("w5")
    page.keyboard.press("Enter")
    expect(page.locator(".card").first).to_have_attribute("title", "00005.png")
    page.reload()
    expect(page.locator(".card").first).to_have_attribute("title", "00005.png")


def test_an_example_is_searched_on_click(page: Page) -> None:
    page.goto("/?release=all")
    page.locator(".example").first.click()
    expect(page.locator(".card").first).to_be_visible()
    assert "?q=" in page.url
    page.go_back()
    expect(page.locator(".example").first).to_be_visible()


def test_a_chosen_image_finds_itself(page: Page, world: Path) -> None:
    page.goto("/?release=all")
    page.locator("#file").set_input_files(world.parent / "images" / "00021.png")
    _wait_for_pictures(page, 10)
    assert page.locator(".card").first.get_attribute("title") == "00021.png"
    expect(page.locator("#picked-name")).to_have_text("00021.png")
    page.get_by_label("Remove the image").click()
    expect(page.locator(".example").first).to_be_visible()


def test_a_dropped_image_finds_itself(page: Page, world: Path) -> None:
    page.goto("/?release=all")
    page.wait_for_selector(".example")
    encoded = base64.b64encode((world.parent / "images" / "00022.png").read_bytes()).decode()
    dropped = page.evaluate_handle(
        """encoded => {
            const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        encoded,
    )
    page.dispatch_event("body", "dragover", {"dataTransfer": dropped})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator(".card").first).to_have_attribute("title", "00022.png")
    expect(page.locator("#picked-name")).to_have_text("dropped.png")


def test_metadata_filters_the_hits(page: Page) -> None:
    page.goto("/?q=w30&release=all")
    expect(page.locator(".card").first).to_be_visible()
    page.get_by_label("Filter by metadata").fill("parity")
    page.keyboard.press("Enter")
    expect(page.locator("#filter-hint")).to_contain_text("key=value")
    page.get_by_label("Filter by metadata").fill("parity=odd")
    page.keyboard.press("Enter")
    expect(page.locator(".stats")).to_contain_text("nearest")
    page.locator(".card").first.click()
    expect(page.locator("#detail-metadata")).to_contain_text("odd")
    page.locator("#detail-metadata button", has_text="odd").click()  # already a filter
    expect(page.locator(".chip")).to_have_count(1)
    page.get_by_label("Filter by metadata").fill("parity=neither")
    page.keyboard.press("Enter")
    expect(page.locator(".note")).to_contain_text("matches the filter")
    page.get_by_label("Remove the filter parity=neither").click()
    page.get_by_label("Remove the filter parity=odd").click()
    expect(page.locator(".card").first).to_have_attribute("title", "00030.png")


def test_releases_are_compared_side_by_side(page: Page) -> None:
    page.goto("/?q=w90")  # an item that only one of the releases contains
    expect(page.locator(".column")).to_have_count(2)
    _wait_for_pictures(page, 20)
    columns = page.locator(".column")
    boxes = [columns.nth(index).bounding_box() for index in range(2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    ids = [[card.get_attribute("title") for card in columns.nth(index).locator(".card").all()] for index in range(2)]
    marked = [
        [card.get_attribute("title") for card in columns.nth(index).locator(".unique .card").all()]
        for index in range(2)
    ]
    assert ids[0][0] == "00090.png"
    assert marked == [[id for id in ids[0] if id not in ids[1]], [id for id in ids[1] if id not in ids[0]]]
    common = len(set(ids[0]) & set(ids[1]))
    expect(page.locator("#summary")).to_have_text(f"{common} of 10 hits in common")
    page.get_by_role("button", name="half", exact=True).click()
    expect(page.locator(".column")).to_have_count(1)
    expect(page.locator(".unique")).to_have_count(0)


def test_a_hit_shows_its_metadata_and_finds_similar_ones(page: Page) -> None:
    page.goto("/?q=w14&release=all")
    page.locator(".card").first.click()
    detail = page.get_by_role("dialog")
    expect(detail).to_contain_text("00014.png")
    expect(page.locator("#detail-metadata")).to_have_text('number14parityeventags["a",14]')
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail-place")).to_have_text("Hit 2 of 10")
    page.keyboard.press("ArrowLeft")
    page.get_by_role("button", name="Find similar").click()
    expect(detail).to_be_hidden()
    expect(page.locator("#picked-name")).to_have_text("00014.png")
    _wait_for_pictures(page, 10)
    assert page.url.endswith("/?release=all")


def test_the_page_works_with_the_keyboard_alone(page: Page) -> None:
    page.goto("/?q=w15&release=all")
    expect(page.locator(".card").first).to_be_visible()
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".card").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#detail-place")).to_have_text("Hit 2 of 10")
    page.keyboard.press("Escape")
    expect(page.locator(".card").nth(1)).to_be_focused()
    page.keyboard.press("/")
    expect(page.get_by_label("What to look for")).to_be_focused()


def test_hostile_ids_and_metadata_are_rendered_as_text(page: Page) -> None:
    page.goto(f"/?q=w{HOSTILE}&where=caption%3D{HOSTILE_ID}")
    expect(page.locator(".note").first).to_be_visible()
    page.goto(f"/?q=w{HOSTILE}")
    _wait_for_pictures(page, 20)
    card = page.locator(".card").first
    assert card.get_attribute("title") == HOSTILE_TEXT
    card.click()
    expect(page.locator("#detail-id")).to_have_text(HOSTILE_ID)
    expect(page.locator("#detail-metadata")).to_contain_text(HOSTILE_TEXT)
    page.get_by_text(HOSTILE_TEXT).last.hover()
    assert page.locator("#detail-stage img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.title() == f"w{HOSTILE} – searchforge"
    assert page.locator("main script, dialog script, [onerror], [onmouseover]").count() == 0


def test_a_file_chosen_before_the_page_is_ready_is_searched(page: Page, errors: list[str]) -> None:
    held: list[Route] = []
    page.route("**/releases", lambda route: held.append(route))
    page.goto("/?release=all")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    held[0].continue_()
    page.unroute("**/releases")
    expect(page.get_by_role("alert")).to_contain_text("not_an_image")
    errors.clear()


def test_a_refused_query_shows_the_reason(page: Page, errors: list[str]) -> None:
    page.goto("/?release=all")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    expect(page.get_by_role("alert")).to_contain_text("not_an_image")
    page.get_by_label("Remove the image").click()
    page.get_by_label("What to look for").fill("w1")
    page.keyboard.press("Enter")
    expect(page.locator(".card").first).to_have_attribute("title", "00001.png")
    assert all("415" in message for message in errors)
    errors.clear()  # the browser logs every failed request


def test_a_stopped_server_is_reported_with_a_retry_button(browser: Browser, world: Path) -> None:
    with serving(world) as server:
        page = browser.new_page(base_url=server.url)
        page.goto("/?q=w1")
        expect(page.locator(".card").first).to_be_visible()
        server.end()
        page.get_by_label("What to look for").fill("w2")
        expect(page.get_by_role("alert")).to_contain_text("still running")
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/?q=w7", "/?q=w7&release=all", "/?q=w7&where=a%3Db"])
def test_the_page_fits_on_a_phone(browser: Browser, server: Server, scheme: str, path: str) -> None:
    page = browser.new_page(
        viewport={"width": 390, "height": 844}, base_url=server.url, color_scheme=scheme, has_touch=True
    )
    page.goto(path)
    page.wait_for_selector(".card, .note" if "q=" in path else ".example")
    _assert_no_overflow(page)
    background, ink = page.evaluate(
        "() => { const found = getComputedStyle(document.body); return [found.backgroundColor, found.color]; }"
    )
    assert (_brightness(background) > _brightness(ink)) == (scheme == "light")
    if page.locator(".card").count():
        page.locator(".card").first.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        _assert_no_overflow(page)
        box = page.get_by_role("dialog").bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.close()


def _brightness(colour: str) -> float:
    """Returns the mean of the channels of `rgb(r, g, b)`, from 0 to 255."""
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")]
    return sum(parts[:3]) / 3
