"""Query-string parameters of each route, validated by pydantic."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from infra.serve.request_error import RequestError

MAX_HITS = 100
MAX_QUERY = 10_000
"""Maximum number of characters of a text query; the encoders read a few hundred at most."""

MAX_CONDITIONS = 16
_MAX_CONDITION = 1_000
_REPEATABLE = {"where"}


def _require_digits(value: str) -> str:
    """Refuses numbers such as `1_0` and `5.0`, which pydantic accepts."""
    if not (value.isascii() and value.isdigit()):
        raise ValueError("not a decimal number")
    return value


_Number = Annotated[int, BeforeValidator(_require_digits)]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY)]
_Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY)]
_Condition = Annotated[str, StringConstraints(pattern="^[^=]+=", max_length=_MAX_CONDITION)]
_RELEASE = Field(default=None, description="the id of a served release")


class Parameters(BaseModel):
    """Base of all parameters; by itself, for routes that take none. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SearchParameters(Parameters):
    """Parameters of a search by image.

    Attributes:
      release: Id of the release to search; None for the first one served.
      k: Maximum number of hits.
      where: Conditions `key=value` on the hits' metadata, all of which must hold.
    """

    k: _Number = Field(default=10, ge=1, le=MAX_HITS, description=f"a number of hits from 1 to {MAX_HITS}")
    release: str | None = _RELEASE
    where: tuple[_Condition, ...] = Field(
        default=(),
        max_length=MAX_CONDITIONS,
        description="key=value, for example split=dev; "
        f"at most {_MAX_CONDITION} characters each and {MAX_CONDITIONS} in total",
    )


class TextSearchParameters(SearchParameters):
    """Parameters of a search by text, with the text `q`."""

    q: _Text = Field(description=f"a text of 1 to {MAX_QUERY} characters, for example q=a+dog")


class ThumbnailParameters(Parameters):
    """Parameters of a thumbnail, with the `id` of an item."""

    id: _Id = Field(description="the id of an item")
    release: str | None = _RELEASE
    size: Literal["small", "large"] = Field(default="small", description="small or large")


P = TypeVar("P", bound=Parameters)


def parse(model: type[P], query: Iterable[tuple[str, str]]) -> P:
    """Validates the names and values of a query string.

    Raises:
      RequestError: 400 with the first invalid parameter, its value, and what is expected.
    """
    values: dict[str, Any] = {}
    for name, value in query:
        values.setdefault(name, []).append(value)
    for name in values.keys() & model.model_fields.keys() - _REPEATABLE:
        if len(values[name]) > 1:
            raise RequestError(400, f"parameter {name} is given {len(values[name])} times; give it once")
        values[name] = values[name][0]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise RequestError(400, _message(model, error.errors()[0])) from None


def _message(model: type[Parameters], error: ErrorDetails) -> str:
    if not error["loc"]:
        return "the name of a parameter is not valid UTF-8"
    name, fields = str(error["loc"][0]), model.model_fields
    if name not in fields:
        return f"parameter {shorten(name)} is unknown; this path takes {', '.join(fields) or 'no parameters'}"
    if error["type"] == "missing":
        return f"parameter {name} is missing; expected {fields[name].description}"
    return f"{name}={shorten(error['input'])} is invalid; expected {fields[name].description}"


def shorten(value: object) -> str:
    """Returns a value's repr for an error message, of at most 83 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
