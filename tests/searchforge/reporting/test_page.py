"""The templates that HTML reports share: untrusted text stays text, and a picture is embedded once."""

from __future__ import annotations

import base64
import io
import re

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from PIL import Image

from searchforge.reporting.page import MAX_ROWS, Thumbnails, clip, environment, number, setting
from tests.html_page import HOSTILE, LONG, Page

BODY = """
<p title="{{ value | clip }}">{{ text(value) }}</p>
{% call table(["Key"]) %}<tr><td>{{ text([value] | setting) }}</td></tr>{% endcall %}
{{ settings_table({value: {value: value}}) }}
{{ charts([(value, value, svg)]) }}
{{ short_text(value) }}
{{ picture(thumbnails, value) }}
"""


def rendered(template: str, **values: object) -> str:
    """Returns what a template gives that may use all macros."""
    macros = "charts, more, picture, settings_table, short_text, table, text"
    source = f'{{% from "macros.html" import {macros} %}}{template}'
    return environment("searchforge.reporting").from_string(source).render(values)


def page_of(body: str, **values: object) -> str:
    """Returns a whole page; its title is `value`."""
    source = (
        '{% extends "page.html" %}'
        '{% from "macros.html" import charts, picture, settings_table, short_text, table, text %}'
        "{% block title %}{{ value | clip }}{% endblock %}{% block style %}.own { color: red; }{% endblock %}"
        f"{{% block content %}}{body}{{% endblock %}}"
    )
    values = {"thumbnails": Thumbnails(lambda id: None), **values}
    return environment("searchforge.reporting").from_string(source).render(values)


@pytest.mark.parametrize("untrusted", HOSTILE)
def test_untrusted_text_stays_text_wherever_it_is_inserted(untrusted: str) -> None:
    def page(value: str) -> Page:
        return Page(page_of(BODY, value=value, svg=Markup("<svg></svg>")))

    found = page(untrusted)
    found.assert_harmless()
    assert found.shape == page("harmless").shape
    assert found.text.count(untrusted) == 8
    attributes = [value for _, attributes in found.tags for value in attributes.values()]
    assert attributes.count(untrusted) == 3


def test_values_are_escaped_without_being_asked_for() -> None:
    assert rendered("{{ value }}", value="<b>") == "&lt;b&gt;"
    assert rendered("{{ value }}", value=Markup("<b>")) == "<b>"


@pytest.mark.parametrize("package", ["searchforge.reporting", "serving_check.report", "trainer.evaluation"])
def test_no_template_turns_escaping_off(package: str) -> None:
    templates = environment(package)
    for name in templates.list_templates(extensions=["html"]):
        assert templates.loader
        source, _, _ = templates.loader.get_source(templates, name)
        assert not re.search(r"\|\s*safe\b|autoescape|Markup", source), name


def test_a_variable_that_is_not_set_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        rendered("{{ absent }}")


@pytest.mark.parametrize("template", ["{{ text(v) }}", "{{ short_text(v) }}", "{{ v | clip }}", "{{ v | setting }}"])
def test_characters_that_html_cannot_represent_are_replaced(template: str) -> None:
    found = rendered(template, v="a\x00b\x1b[31m\ud800")
    assert "a\ufffdb\ufffd[31m\ufffd" in found
    found.encode()


def test_a_long_text_is_folded_or_cut() -> None:
    folded, cut = (Page(rendered(f"{{{{ {macro}(value) }}}}", value=LONG)) for macro in ("text", "short_text"))
    assert LONG in folded.text and "(10,000 characters)" in folded.text and ("details", {}) in folded.tags
    assert len(cut.text) < 400 and "(10,000 characters)" in cut.text and {tag for tag, _ in cut.tags} == {"bdi"}
    assert len(clip(LONG)) < 400


def test_settings_and_numbers_are_written_for_people() -> None:
    assert [setting(value) for value in ([1, "a"], {"a": 1, "b": 2}, 0, None)] == ["1, a", "a: 1, b: 2", "0", "–"]
    assert (number(0.1234, 100, 1), number(None, 1, 0), number("x", 1, 0)) == ("12.3", "–", "–")
    template = "{{ more(count, 'rows') }}"
    assert rendered(template, count=MAX_ROWS).strip() == ""
    assert "and 1 more rows" in rendered(template, count=MAX_ROWS + 1)


def test_a_table_without_heads_has_no_head() -> None:
    template = "{% call table(heads) %}<tr><td>a</td></tr>{% endcall %}"
    assert "<thead>" not in rendered(template, heads=["", ""])
    assert "<thead>" in rendered(template, heads=["a", ""])


def test_a_picture_is_embedded_once_however_often_and_under_whatever_id_it_is_shown() -> None:
    asked: list[str] = []

    def pictures(id: str) -> bytes | None:
        asked.append(id)
        return encoded("blue" if id == "other" else "red")

    thumbnails = Thumbnails(pictures)
    classes = [thumbnails.css_class(id) for id in ("one", "copy", "other", "one")]
    assert asked == ["one", "copy", "other"]
    assert classes == ["p0", "p0", "p1", "p0"]
    assert [colour(image) for image in images(thumbnails.style())] == ["red", "blue"]


@pytest.mark.parametrize("data", [None, b"", b"no image", b"\xff\xd8\xff\xe0 cut off"])
def test_an_item_without_a_picture_is_an_empty_frame_with_its_name(data: bytes | None) -> None:
    thumbnails = Thumbnails(lambda id: data)
    frame = Page(rendered("{{ picture(thumbnails, id) }}", thumbnails=thumbnails, id='a "dog"'))
    assert frame.tags == [("span", {"class": "picture empty", "role": "img", "aria-label": 'a "dog"'})]
    assert thumbnails.style() == "" and not thumbnails.has("id")


def test_a_thumbnail_is_small_and_keeps_nothing_of_the_original_but_its_pixels() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    Image.effect_noise((3000, 2000), 90).convert("RGB").save(file, "JPEG", comment=b"who took it", exif=exif)
    thumbnails = Thumbnails(lambda id: file.getvalue())
    thumbnails.css_class("id")
    (image,) = images(thumbnails.style())
    assert max(image.size) <= 200
    assert not image.getexif() and "comment" not in image.info
    assert len(thumbnails.style()) < 20_000


def test_a_page_has_its_own_rules_after_the_shared_ones_and_those_of_its_pictures() -> None:
    thumbnails = Thumbnails(lambda id: encoded("red"))
    style = Page(page_of("{{ picture(thumbnails, value) }}", value="id", thumbnails=thumbnails)).style
    assert style.index(":root") < style.index(".own { color: red; }") < style.index(".p0{background-image")


def encoded(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), name).save(file, "PNG")
    return file.getvalue()


def images(style: str) -> list[Image.Image]:
    """Returns the pictures embedded in CSS rules."""
    found = re.findall(r"url\(data:image/jpeg;base64,([^)]*)\)", style)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def colour(image: Image.Image) -> str:
    red, _, blue = image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return "red" if red > blue else "blue"
