"""The page of a check is whole and offline, says the verdict first, and keeps foreign text text."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image

from serving_check.report import Report
from serving_check.report_html import render
from tests.html_page import HOSTILE, LONG, Page
from tests.serving_check.sample_report import sample


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_foreign_text_stays_text(text: str) -> None:
    page = Page(render(sample(text, failed=True), lambda id: None))
    page.assert_harmless()
    assert page.text.count(text) >= 15
    assert page.shape == Page(render(sample("a", failed=True), lambda id: None)).shape


def test_the_verdict_and_failed_gates_come_first() -> None:
    good, bad = (Page(render(sample(failed=failed), lambda id: None)).text for failed in (False, True))
    assert "This searcher may ship: all 5 gates passed." in good and "must not ship" not in good
    assert "This searcher must not ship. 3 of 5 gates failed" in bad
    assert (
        bad.index("must not ship")
        < bad.index("live_latency_p50_ms")
        < bad.index("every item")
        < bad.index("Main figures")
    )
    assert "at least 0.9 demanded: 0.1 too low" in bad


def test_pictures_are_embedded_once_and_missing_ones_are_named() -> None:
    pictures = {"a dog0": picture("red"), "a dog1": picture("blue"), "a dog2": b"no image"}
    page = Page(render(sample(), pictures.get))
    page.assert_harmless()
    assert len(page.style.split("url(data:image/jpeg;base64,")) == 3
    labels = [str(attributes.get("aria-label")) for _, attributes in page.tags]
    assert "a dog2" in page.text or any("a dog2" in label for label in labels)


def test_what_the_searcher_missed_is_shown() -> None:
    text = Page(render(sample(), lambda id: None)).text
    assert "recall@10" in text
    assert "a dog10missed9 0.800" in text and "a dog11missed10 0.790" in text
    assert "a dog1extra2 0.890" in text


def test_figures_have_units_and_intervals() -> None:
    text = Page(render(sample(), lambda id: None)).text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in ("95.0 %", "93.0 to 97.0 %", "5.10 ms", "32.4 MB", "overlap by 87.0 %", "+1.0 points better"):
        assert expected in text, expected


def test_parts_that_are_missing_are_left_out() -> None:
    bare = sample(examples=(), latency={}, sizes={}, hostile=(), training={}, tradeoff=None, live=None, figures={})
    page = Page(render(bare, lambda id: None))
    for heading in (
        "Example queries",
        "What the files",
        "Hostile",
        "Training of",
        "Beside the live",
        "What the tuner saw",
    ):
        assert heading not in page.text
    assert "5 gates passed" in page.text and "Provenance" in page.text


def test_a_long_text_is_folded_but_whole() -> None:
    page = Page(render(sample(LONG), lambda id: None))
    assert LONG in page.text


def test_the_same_report_gives_the_same_page_even_after_json() -> None:
    report = sample(HOSTILE[0])
    again = Report.model_validate(json.loads(report.model_dump_json()))
    assert again == report
    assert render(again, lambda id: None) == render(report, lambda id: None)


def test_scores_that_are_no_numbers_survive() -> None:
    report = sample()
    hits = (report.examples[0].hits[0].model_copy(update={"score": float("inf")}),)
    broken = sample(examples=(report.examples[0].model_copy(update={"hits": hits}),))
    again = Report.model_validate(json.loads(broken.model_dump_json()))
    assert again.examples[0].hits[0].score is None
    assert "no number" in render(again, lambda id: None)
