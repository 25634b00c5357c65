"""Renders HTML reports from Jinja2 templates, and embeds thumbnails in them.

A report is one file that opens offline: it contains everything it shows, runs no script and loads nothing; its content
security policy forbids both. Captions, ids, file names, reasons and settings are untrusted, so every value is escaped.
Only charts that matplotlib drew and the rules of `Thumbnails` are inserted as markup.
"""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import ImageOps

from searchforge.config import DEFAULT_MAX_PIXELS
from searchforge.image_decoding import RejectedInput, decode
from searchforge.reporting.thumbnails import encode_jpeg

MAX_ROWS = 100
"""Maximum number of rows of a table; the macro `more` counts the rest."""

_THUMBNAIL = 160  # pixels; shown at about half of it, for dense displays
_QUALITY = 65
_MAX_LENGTH = 300  # characters of a text that are shown before it is folded or cut
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters and lone surrogates


def render_page(package: str, template: str, **values: Any) -> str:
    """Renders a template that extends page.html.

    Args:
      package: Package with the template in its folder `templates`.
      template: File name of the template.
      values: Variables of the template; page.html needs `thumbnails`.
    """
    return environment(package).get_template(template).render(values)


@functools.cache
def environment(package: str) -> Environment:
    """Returns the templates of a package together with those that all reports share."""
    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("searchforge.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals["MAX_ROWS"] = MAX_ROWS
    templates.globals["MAX_LENGTH"] = _MAX_LENGTH
    templates.filters |= {"clip": clip, "setting": setting, "number": number, "thousands": "{:,}".format}
    return templates


def clip(value: object) -> str:
    """Returns a text cut to the length that is shown at once."""
    text = str(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}…"


def setting(value: Any) -> str:
    """Returns a configuration value as text; a dash if it is None."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        value = [f"{key}: {entry}" for key, entry in value.items()]
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def number(value: Any, scale: float, digits: int) -> str:
    """Returns a number times `scale`; a dash if it is not a number."""
    return f"{scale * value:.{digits}f}" if isinstance(value, (int, float)) else "–"


def _printable(value: Any) -> Any:
    """Replaces characters that HTML cannot represent; applied to every expression of a template."""
    return value if isinstance(value, Markup) else _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


class Thumbnails:
    """Small JPEGs embedded in a page, each of them once however often it is shown."""

    def __init__(self, pictures: Callable[[str], bytes | None]) -> None:
        """`pictures` returns the encoded image of an item, or None if there is none."""
        self._pictures = pictures
        self._number_of: dict[str, int | None] = {}
        self._numbers: dict[str, int] = {}

    def has(self, *ids: str) -> bool:
        """Returns whether any of these items has a picture that can be decoded."""
        return any(self._number(id) is not None for id in ids)

    def css_class(self, id: str) -> str:
        """Returns the class of an element that shows the item's picture, or an empty frame without one."""
        number = self._number(id)
        return "empty" if number is None else f"p{number}"

    def style(self) -> Markup:
        """Returns the CSS rules of all classes returned so far."""
        rules = (f".p{number}{{background-image:url({uri})}}\n" for uri, number in self._numbers.items())
        return Markup("".join(rules))

    def _number(self, id: str) -> int | None:
        if id not in self._number_of:
            uri = self._data_uri(id)
            self._number_of[id] = self._numbers.setdefault(uri, len(self._numbers)) if uri else None
        return self._number_of[id]

    def _data_uri(self, id: str) -> str:
        data = self._pictures(id)
        if data is None:
            return ""
        try:
            image = ImageOps.fit(decode(data, DEFAULT_MAX_PIXELS, 2 * _THUMBNAIL), (_THUMBNAIL, _THUMBNAIL))
        except RejectedInput:
            return ""
        jpeg = encode_jpeg(image, _QUALITY, smallest=True)
        return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
