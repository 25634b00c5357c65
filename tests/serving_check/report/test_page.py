"""The page of a check is complete and offline, starts with the verdict, and keeps untrusted text as text."""

from __future__ import annotations

import io
import json
import random

import pytest
from PIL import Image

from serving_check.gate import Gate, at_least, at_most
from serving_check.report.html import render
from serving_check.schema import Report
from tests.html_page import HOSTILE, LONG, Page
from tests.serving_check.report import realistic_reports
from tests.serving_check.report.realistic_reports import example
from tests.serving_check.report.sample_report import sample


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_stays_text(text: str) -> None:
    page = Page(render(sample(text, failed=True), lambda id: None))
    page.assert_harmless()
    assert page.text.count(text) >= 15
    assert page.shape == Page(render(sample("a", failed=True), lambda id: None)).shape


def test_the_verdict_and_failed_gates_come_first() -> None:
    good, bad = (Page(render(sample(failed=failed), lambda id: None)).text for failed in (False, True))
    assert "This searcher may be released: all 5 gates passed." in good and "must not be released" not in good
    assert "This searcher must not be released. 3 of 5 gates failed" in bad
    assert (
        bad.index("must not be released")
        < bad.index("live_latency_p50_ms")
        < bad.index("every item")
        < bad.index("Main figures")
    )
    assert "0.80, below the minimum of 0.90" in bad


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
        "File sizes",
        "Hostile",
        "Training of",
        "Comparison with the live",
        "Trade-off",
    ):
        assert heading not in page.text
    assert "5 gates passed" in page.text and "Provenance" in page.text


def test_a_long_text_is_folded_but_complete() -> None:
    page = Page(render(sample(LONG), lambda id: None))
    assert LONG in page.text


def test_the_same_report_gives_the_same_page_even_after_json() -> None:
    report = sample(HOSTILE[0])
    again = Report.model_validate(json.loads(report.model_dump_json()))
    assert again == report
    assert render(again, lambda id: None) == render(report, lambda id: None)


def test_scores_that_are_not_finite_are_shown_as_such() -> None:
    report = sample()
    hits = (report.examples[0].hits[0].model_copy(update={"score": float("inf")}),)
    broken = sample(examples=(report.examples[0].model_copy(update={"hits": hits}),))
    again = Report.model_validate(json.loads(broken.model_dump_json()))
    assert again.examples[0].hits[0].score is None
    assert "not finite" in render(again, lambda id: None)


def test_every_gate_has_its_title_its_name_and_its_figures() -> None:
    gates = (
        at_least("recall_at_10", 0.8, 0.9),
        at_most("live_searcher_bytes", 31e6, 30e6),
        at_least("r_at_10", None, 0.5, "there are no captions"),
        at_least("images_find_themselves", 0.97, 0.8),
        Gate("never_heard_of", None, None, False, "odd"),
        Gate("$\\frac<b>", 0.5, 2.0, True, "odder"),
    )
    page = Page(render(sample(gates=gates, passed=False), lambda id: None))
    page.assert_harmless()
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in (
        *("Recall@10 recall_at_1080.0 %at least 90.0 %", "31.0 MBat most 30.0 MB", "97.0 % at least 80.0 %"),
        *("Larger searcher file, compared with the live release", "not measuredat least 50.0 %there are no captions"),
        *("Never heard of never_heard_ofodd", "$\\frac<b>0.5 at most 2odder"),
    ):
        assert expected in text, expected


def test_a_value_that_barely_misses_its_limit_does_not_look_equal_to_it() -> None:
    page = Page(render(sample(gates=(at_least("recall_at_10", 0.89996, 0.9),), passed=False), lambda id: None))
    assert "0.89996at least 0.9" in page.text


def test_realistic_reports_state_the_findings() -> None:
    good, bad, texts, unopened = (
        Page(render(report, lambda id: None)).text.replace("\N{NO-BREAK SPACE}", " ")
        for report in (
            realistic_reports.passed(),
            realistic_reports.failed(),
            realistic_reports.of_texts(),
            realistic_reports.unopened(),
        )
    )
    assert "8,091 images · checked 24 November 2026, 16:07 UTC" in good
    assert "500 held-out captions (75 of which the tuner had seen) among 8,091 images" in good
    assert "The tuner chose codes of 64 B" in good and "chosen by the tuner" in good
    assert "Rejected20" in good and "truncated110.1 %" in good
    assert "None of 14 failed" in good
    assert "−3.5 % better" in good and "+3.8 % worse" in good and "R@1077.2 %77.2 %no change" in good
    assert "3 of 22 gates failed: Ids of the hits, Recall@10, Latency, 99th percentile" in bad
    assert "1,200 texts" in texts and "article/0000" in texts
    assert "2 of 2 gates failed" in unopened and "not measured" in unopened


def test_a_page_full_of_pictures_stays_small() -> None:
    def noise(id: str) -> bytes:
        generator = random.Random(id)
        small = Image.frombytes("RGB", (24, 16), generator.randbytes(24 * 16 * 3))
        file = io.BytesIO()
        small.resize((600, 400), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)  # as detailed as a photo
        return file.getvalue()

    examples = []
    for place in range(12):
        ids = [f"{place}-{item}.jpg" for item in range(20)]
        examples.append(example(ids[0], "a query", ids[:10], ids[10:]))
    page = render(sample(examples=tuple(examples)), noise)
    assert page.count("data:image/jpeg") == 240
    assert len(page.encode()) < 2_000_000


def test_items_are_marked_as_own_extra_and_missed() -> None:
    shown = example("own", "a query", hits=["own", "both", "extra"], exact=["own", "missed", "both"])
    same = example("own", "another query", hits=["own", "both"], exact=["both", "own"])
    page = Page(render(sample(examples=(shown, same)), lambda id: None))
    cells = [(str(a["title"]), str(a["class"])) for tag, a in page.tags if tag == "li" and "title" in a]
    assert cells == [
        *(("own", "own shared"), ("both", "shared"), ("extra", "extra")),
        *(("own", "own shared"), ("missed", "missed"), ("both", "shared")),
        *(("own", "own shared"), ("both", "shared")),  # exact search found the same
    ]


def test_an_image_query_is_shown_as_its_picture() -> None:
    query = example("a.jpg", "a.jpg", hits=["b.jpg"], exact=["b.jpg"], kind="image")
    page = Page(render(sample(examples=(query,)), {"a.jpg": picture("red")}.get))
    labels = [a["aria-label"] for _, a in page.tags if str(a.get("class")).startswith("picture p")]
    assert labels == ["a.jpg"]
    assert "image query" in page.text
