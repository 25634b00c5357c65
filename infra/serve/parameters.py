"""What a request may say, parsed and checked. A fault is a Refusal with status 400 (404: no such release)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from infra.serve.refusal import Refusal

MAX_HITS = 100
MAX_QUERY = 10_000
"""Characters of a text query; the encoders read a few hundred at most."""

MAX_CONDITIONS = 16
MAX_CONDITION = 1_000
_DEFAULT_HITS = 10


@dataclass(frozen=True)
class Condition:
    """`key=value`: metadata that a hit must have.

    Attributes:
      value: as a person writes it: `3`, `true`, `null`, or a text without quotes.
    """

    key: str
    value: str

    def holds(self, metadata: dict[str, Any]) -> bool:
        """Whether the metadata has this value under this key, or a list with this value in it."""
        if self.key not in metadata:
            return False
        found = metadata[self.key]
        return any(_written(item) == self.value for item in (found if isinstance(found, list) else [found]))


@dataclass(frozen=True)
class SearchParameters:
    """Of a search.

    Attributes:
      release: id of a served release.
      k: number of hits.
      where: conditions, all of which a hit must meet.
    """

    release: str
    k: int
    where: tuple[Condition, ...]


class Parameters:
    """The query string of one request, of which every name must be known.

    Args:
      items: names and values in their order.
      known: names that this request takes.
      repeatable: of those, the ones that may be given several times.
    """

    def __init__(
        self, items: Iterable[tuple[str, str]], known: Collection[str], repeatable: Collection[str] = ()
    ) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in items:
            if name not in known:
                raise Refusal(400, f"parameter {_shown(name)} is unknown; this path takes {', '.join(known)}")
            values = self._values.setdefault(name, [])
            values.append(value)
            if len(values) > 1 and name not in repeatable:
                raise Refusal(400, f"parameter {name} is given {len(values)} times; give it once")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise Refusal(400, f"parameter {name} is not UTF-8") from None

    def text(self, name: str) -> str:
        """Returns a required text of at most MAX_QUERY characters, without the white space around it."""
        value = self._one(name, "").strip()
        if not value:
            raise Refusal(400, f"parameter {name} is missing or empty; give what to look for, such as {name}=a+dog")
        if len(value) > MAX_QUERY:
            raise Refusal(400, f"parameter {name} has {len(value)} characters; give {MAX_QUERY} or fewer")
        return value

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Returns one of `choices`."""
        value = self._one(name, default)
        if value not in choices:
            raise Refusal(400, f"{name}={_shown(value)} is not known; choose {' or '.join(choices)}")
        return value

    def release(self, served: Collection[str]) -> str:
        """Returns the id of a served release, by default the first one's."""
        value = self._one("release", next(iter(served)))
        if value not in served:
            raise Refusal(404, f"release {_shown(value)} is not served here; served: {', '.join(served)}")
        return value

    def search(self, served: Collection[str]) -> SearchParameters:
        """Returns `release`, `k` and `where`."""
        return SearchParameters(self.release(served), self._hits(), self._conditions())

    def _hits(self) -> int:
        value = self._one("k", str(_DEFAULT_HITS))
        if not (value.isascii() and value.isdigit() and len(value) <= 3 and 1 <= int(value) <= MAX_HITS):
            raise Refusal(400, f"k={_shown(value)} is not a number of hits; give 1 to {MAX_HITS}")
        return int(value)

    def _conditions(self) -> tuple[Condition, ...]:
        values = self._values.get("where", [])
        if len(values) > MAX_CONDITIONS:
            raise Refusal(400, f"where is given {len(values)} times; give it {MAX_CONDITIONS} times or fewer")
        conditions = []
        for value in values:
            key, separator, wanted = value.partition("=")
            if not separator or not key or len(value) > MAX_CONDITION:
                raise Refusal(
                    400,
                    f"where={_shown(value)} is not understood; give key=value, such as split=dev, "
                    f"in {MAX_CONDITION} characters or fewer",
                )
            conditions.append(Condition(key, wanted))
        return tuple(conditions)

    def _one(self, name: str, default: str) -> str:
        return self._values.get(name, [default])[0]


def _written(value: Any) -> str:
    """Returns a metadata value as a person writes it in a condition."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else f"{value[:80]}...")
