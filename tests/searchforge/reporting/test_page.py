"""The building blocks of HTML reports: foreign text stays text, and a picture is embedded once."""

from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from searchforge.reporting.page import (
    ROWS,
    Thumbnails,
    attribute,
    cards,
    charts,
    document,
    more,
    number,
    shown,
    table,
    text,
)
from tests.html_page import HOSTILE, LONG, Page


@pytest.mark.parametrize("foreign", HOSTILE)
def test_foreign_text_is_shown_as_it_is_wherever_it_stands(foreign: str) -> None:
    def page(value: str) -> Page:
        body = (
            f'<p title="{attribute(value)}">{text(value)}</p>',
            table(["Key"], [[shown([value])]]),
            charts([(value, value, "<svg></svg>")]),
            cards([(text(value), text(value), text(value))]),
            Thumbnails(lambda id: None).element(value, value),
        )
        return Page(document(value, body, ""))

    found = page(foreign)
    found.assert_harmless()
    assert found.shape == page("harmless").shape
    assert found.text.count(foreign) == 7
    attributes = [value for _, attributes in found.tags for value in attributes.values()]
    assert attributes.count(foreign) == 3


@pytest.mark.parametrize("write", [text, attribute, shown])
def test_characters_that_html_cannot_hold_are_replaced(write: object) -> None:
    assert callable(write)
    assert "a\ufffdb\ufffd[31m\ufffd" in write("a\x00b\x1b[31m\ud800")
    write("\ud800").encode()


def test_a_long_text_is_folded_or_cut() -> None:
    folded, cut = Page(text(LONG)), Page(text(LONG, fold=False))
    assert LONG in folded.text and "(10,000 characters)" in folded.text and ("details", {}) in folded.tags
    assert len(cut.text) < 400 and "(10,000 characters)" in cut.text and {tag for tag, _ in cut.tags} == {"bdi"}
    assert len(attribute(LONG)) < 400


def test_settings_and_numbers_are_written_for_people() -> None:
    assert [Page(shown(value)).text for value in ([1, "a"], {"a": 1, "b": 2}, 0, None)] == [
        *("1, a", "a: 1, b: 2", "0", "–"),
    ]
    assert (number(0.1234, 100, 1), number(None, 1, 0), number("x", 1, 0)) == ("12.3", "–", "–")
    assert more(ROWS, "rows") == "" and "and 1 more rows" in more(ROWS + 1, "rows")


def test_a_table_without_heads_has_none() -> None:
    assert "<thead>" not in table(["", ""], [["a", "b"]])
    assert "<thead>" in table(["a", ""], [])


def test_a_picture_is_embedded_once_however_often_and_under_whatever_id_it_is_shown() -> None:
    asked: list[str] = []

    def pictures(id: str) -> bytes | None:
        asked.append(id)
        return encoded("blue" if id == "other" else "red")

    thumbnails = Thumbnails(pictures)
    elements = [thumbnails.element(id, id) for id in ("one", "copy", "other", "one")]
    style = thumbnails.style()
    assert asked == ["one", "copy", "other"]
    assert re.findall(r'class="picture (\w+)"', "".join(elements)) == ["p0", "p0", "p1", "p0"]
    assert [colour(image) for image in images(style)] == ["red", "blue"]


@pytest.mark.parametrize("data", [None, b"", b"no image", b"\xff\xd8\xff\xe0 cut off"])
def test_what_is_no_picture_is_an_empty_frame_with_its_name(data: bytes | None) -> None:
    thumbnails = Thumbnails(lambda id: data)
    assert thumbnails.element("id", 'a "dog"') == (
        '<span class="picture empty" role="img" aria-label="a &quot;dog&quot;"></span>'
    )
    assert thumbnails.style() == "" and not thumbnails.has("id")


def test_a_thumbnail_is_small_and_has_nothing_of_the_original_but_its_pixels() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    Image.effect_noise((3000, 2000), 90).convert("RGB").save(file, "JPEG", comment=b"who took it", exif=exif)
    thumbnails = Thumbnails(lambda id: file.getvalue())
    thumbnails.element("id", "id")
    (image,) = images(thumbnails.style())
    assert max(image.size) <= 200
    assert not image.getexif() and "comment" not in image.info
    assert len(thumbnails.style()) < 20_000


def test_empty_sections_are_left_out() -> None:
    page = document("title", ["<p>a</p>", "", "<p>b</p>"], ".own { color: red; }")
    assert "<p>a</p>\n<p>b</p>" in page and ".own { color: red; }" in Page(page).style


def encoded(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), name).save(file, "PNG")
    return file.getvalue()


def images(style: str) -> list[Image.Image]:
    """The pictures in rules."""
    found = re.findall(r"url\(data:image/jpeg;base64,([^)]*)\)", style)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def colour(image: Image.Image) -> str:
    red, _, blue = image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return "red" if red > blue else "blue"
