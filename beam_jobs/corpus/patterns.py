"""Patterns of names: globs that select the files of a corpus, and names of files and folders that are left out.

`*` and `?` match within a folder, `**` across folders, and `[...]` matches one of several characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from searchforge.errors import UsageError

WILDCARD = re.compile(r"[*?\[]")


class Glob:
    """A path with wildcards. Names are matched relative to `root`; default: the folder above the first wildcard."""

    def __init__(self, path: str, root: str | None = None) -> None:
        self.root = WILDCARD.split(path)[0].rpartition("/")[0] if root is None else root
        below = path[len(self.root) + 1 :]
        self._matches = _compiled(below).fullmatch
        parts = below.split("/")[:-1]
        fixed_depth = next((depth for depth, part in enumerate(parts) if "**" in part), len(parts))
        self._folders = [_compiled("/".join(parts[: depth + 1])) for depth in range(fixed_depth)]
        self._any_depth = "**" in below

    def matches(self, name: str) -> bool:
        """Returns whether a file matches."""
        return self._matches(name) is not None

    def enters(self, folder: str) -> bool:
        """Returns whether files in or below a folder can match; other folders need not be listed."""
        depth = folder.count("/")
        if depth < len(self._folders):
            return self._folders[depth].fullmatch(folder) is not None
        return self._any_depth


class Exclusion:
    """Names to leave out, and what was left out so far.

    Args:
      patterns: A pattern without `/` matches a file or folder at any depth, and one with `/` a path relative to the
        corpus. Everything below a folder that matches is left out.

    Attributes:
      count: Number of files left out, and of folders that were therefore not listed.
      example: The first of them.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        patterns = [pattern.strip("/") for pattern in patterns]
        found = [_compiled(pattern if "/" in pattern else f"**/{pattern}").pattern for pattern in patterns]
        self._matches = re.compile(f"(?:{'|'.join(found)})(?:/.*)?", re.DOTALL).fullmatch if found else None
        self.count, self.example = 0, ""

    def excludes(self, name: str) -> bool:
        """Returns whether to leave out a file or folder, by its path relative to the corpus; counts it if so."""
        if self._matches is None or not self._matches(name):
            return False
        self.count += 1
        self.example = self.example or name
        return True


def _compiled(pattern: str) -> re.Pattern[str]:
    """Returns the regular expression of a pattern.

    Raises:
      UsageError: It has none, as `[z-a]`.
    """
    try:
        return re.compile(_translate(pattern), re.DOTALL)
    except re.error as error:
        raise UsageError(f"pattern {pattern!r} is not valid ({error}); to match a bracket, write [[]") from None


def _translate(pattern: str) -> str:
    """Translates a glob into a regular expression."""
    tokens = re.compile(r"(\*\*/)|(\*\*)|(\*)|(\?)|\[([!^]?)(\]?[^\]]*)\]|(.)", re.DOTALL)

    def expression(token: re.Match[str]) -> str:
        double_star_slash, double_star, star, question_mark, negated, characters, literal = token.groups()
        if double_star_slash:
            return "(?:.*/)?"
        if double_star:
            return ".*"
        if star:
            return "[^/]*"
        if question_mark:
            return "[^/]"
        if literal:
            return re.escape(literal)
        escaped = re.sub(r"([\\\[\]^&|~])", r"\\\1", characters)
        return f"[{'^/' if negated else ''}{escaped}]"

    return tokens.sub(expression, pattern)
