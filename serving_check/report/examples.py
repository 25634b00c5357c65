"""Example queries of a check's page: what the searcher found, beside what exact search finds."""

from __future__ import annotations

from collections.abc import Sequence

from searchforge.reporting.page import Thumbnails, attribute, text
from serving_check.schema import Example, FoundItem

_SHOWN = 6
"""Examples that are not folded away."""


def examples(queries: Sequence[Example], thumbnails: Thumbnails) -> str:
    """Returns the section; empty where there are no examples."""
    if not queries:
        return ""
    drawn = [_example(query, thumbnails) for query in queries]
    rest = len(drawn) - _SHOWN
    folded = f"<details><summary>{rest} more</summary>{''.join(drawn[_SHOWN:])}</details>" if rest > 0 else ""
    return (
        "<section id=examples><h2>Example queries</h2><p>Those with the lowest recall first, with the scores of the "
        "index (approximate) and of exact search.</p><ul class=key><li class=own><em>own</em> the item that the query "
        "describes or is</li><li class=extra><em>extra</em> returned, but not among the exact answers</li>"
        "<li class=missed><em>missed</em> an exact answer that was not returned</li></ul>"
        f"{''.join(drawn[:_SHOWN])}{folded}</section>"
    )


def _example(query: Example, thumbnails: Thumbnails) -> str:
    hits, exact = {hit.id for hit in query.hits}, {hit.id for hit in query.exact}
    pictured = any(thumbnails.has(id) for id in (query.own, *hits, *exact))
    rows = _row("Searcher", query.hits, query.own, exact, "extra", thumbnails if pictured else None)
    if hits != exact:
        rows += _row("Exact", query.exact, query.own, hits, "missed", thumbnails if pictured else None)
    picture = thumbnails.element(query.own, query.own) if thumbnails.has(query.own) else ""
    return (
        f"<article class=example>{_head(query, picture)}"
        f"<div class={'pictured' if pictured else 'listed'}>{rows}</div></article>"
    )


def _head(query: Example, picture: str) -> str:
    if query.kind == "text":
        title, about = text(query.query), f"own item {text(query.own, fold=False)}"
    else:
        title, about = text(query.own), "image query"
    where = "" if any(hit.id == query.own for hit in query.hits) else " · not found"
    share = round(100 * query.recall_at_10)
    kind = "good" if share >= 100 else "low" if share < 50 else "middle"
    return (
        f"<div class=query>{picture}<div><div class=title>{title}</div><div class=note>{about}{where}</div></div>"
        f'<div class="recall {kind}"><b>{share}\N{NO-BREAK SPACE}%</b> recall@10</div></div>'
    )


def _row(
    label: str, items: Sequence[FoundItem], own: str, others: set[str], mark: str, thumbnails: Thumbnails | None
) -> str:
    """Items in their order; those that are not among the others get the mark."""
    if not items:
        return f"<div><h4>{label}</h4><div class=note>nothing</div></div>"
    cells = []
    for place, item in enumerate(items, start=1):
        kinds = [*(["own"] if item.id == own else []), mark if item.id not in others else "shared"]
        shown = thumbnails.element(item.id, item.id) if thumbnails else f"<span>{text(item.id, fold=False)}</span>"
        said = mark if kinds[-1] == mark else "own" if item.id == own else ""
        tag = f"<em>{said}</em>" if said else ""
        cells.append(
            f'<li class="{" ".join(kinds)}" title="{attribute(item.id)}">{shown}{tag}'
            f"<small><b>{place}</b> {_score(item)}</small></li>"
        )
    return f"<div><h4>{label}</h4><ol class={label.lower()}>{''.join(cells)}</ol></div>"


def _score(item: FoundItem) -> str:
    return "no number" if item.score is None else f"{item.score:.3f}"
