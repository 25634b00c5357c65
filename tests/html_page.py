"""Hostile texts and a strict HTML parser for tests of reports."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    "</bdi></div><img src=x onerror=alert(1)>",
    "\" onmouseover=\"alert(1)' style='x",
    "</style><svg onload=alert(1)>",
    "&lt;b&gt; <!-- ]]> -->",
    "كلب يجري على الشاطئ \u202e evil",
    "👩‍👩‍👧‍👦 犬が浜辺を走る",
    "{report} %s {{x}}",
    "$\\frac{1}{$",
]
LONG = "very long " * 1000

_VOID_TAGS = {"meta", "img", "br"}
_FORBIDDEN_TAGS = {"script", "iframe", "object", "embed", "base", "form", "link", "foreignobject"}
_URL_ATTRIBUTES = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """A parsed page. Raises AssertionError if elements are not nested properly.

    Attributes:
      tags: Name and attributes of every element, in document order.
      text: Text of the title and the body, without the line breaks and indentation of templates.
      style: Text of all `<style>` elements.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"{tag} has a duplicate attribute"
        if tag not in _VOID_TAGS:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += re.sub(r"\s*\n\s*", " " if data.strip() else "", data)

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """Elements with the names of their attributes, which untrusted text must not change."""
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]

    def assert_harmless(self) -> None:
        """Asserts that the page's policy and elements allow neither scripts nor external resources."""
        policies = [a["content"] for _, a in self.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert len(policies) == 1
        assert "default-src 'none'" in str(policies[0]) and "script-src" not in str(policies[0])
        for tag, attributes in self.tags:
            assert tag not in _FORBIDDEN_TAGS
            assert not [name for name in attributes if name.startswith("on")], tag
            for name in attributes.keys() & _URL_ATTRIBUTES:
                assert str(attributes[name]).startswith(("#", "data:image/jpeg;base64,")), (tag, name)
        loaded = self.style.split("url(")[1:]
        assert all(url.startswith("data:image/jpeg;base64,") for url in loaded)
        assert "@import" not in self.style
