"""YAML text as plain values, with the line of every key.

YAML as PyYAML's safe loader reads it, with four differences that recipes want: `1e-4` is a number, a date is text,
a key given twice is an error, and so is an alias (`*name`): a recipe says what it says where it says it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

try:
    from yaml import CSafeDumper as _SafeDumper  # libyaml's, where PyYAML was built with it: ten times as fast
except ImportError:
    from yaml import SafeDumper as _SafeDumper  # type: ignore[assignment]

from luthier.errors import RecipeError

Path = tuple[str | int, ...]

_FLOAT_TAG = "tag:yaml.org,2002:float"
_DATE_TAG = "tag:yaml.org,2002:timestamp"
_FLOAT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$")
_FLOAT_STARTS = "+-.0123456789"


class _Loader(yaml.SafeLoader):
    """The safe loader with a recipe's reading of numbers and dates."""

    yaml_implicit_resolvers = {  # noqa: RUF012  the parser reads this table from the class
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_FLOAT_TAG, _DATE_TAG)]
        + ([(_FLOAT_TAG, _FLOAT)] if first in _FLOAT_STARTS else [])
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(_SafeDumper):
    """The safe dumper, which puts into quotes also the texts that a recipe would read as numbers, and writes no aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012  as above
        first: [*resolvers, *([(_FLOAT_TAG, _FLOAT)] if first in _FLOAT_STARTS else [])]
        for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        """See the base class."""
        return True


@dataclass(frozen=True)
class Source:
    """Where a value was written: a file (or a `--set` flag) and its 1-based line, as far as they are known."""

    file: str | None
    line: int | None = None


@dataclass(frozen=True)
class Parsed:
    """Plain values, and where each of them was written, by its path of keys; the empty path is the whole."""

    values: Any
    sources: dict[Path, Source]

    def source_of(self, path: Path) -> Source:
        """Where the value at a path was written; for one that is not there, the block that it is missing from."""
        while path not in self.sources:
            path = path[:-1]
        return self.sources[path]


def to_yaml(values: Any) -> str:
    """Plain values as YAML text, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def parse_yaml(text: str, file: str) -> Parsed:
    """The values of a YAML text; `file` is named in errors.

    Raises: RecipeError with the line, for text that is not YAML, a key given twice, an alias, or a number that is
    not finite.
    """
    try:
        for token in yaml.scan(text, Loader=_Loader):
            if isinstance(token, yaml.AliasToken):
                line = token.start_mark.line + 1
                raise RecipeError("Recipes hold no aliases (*name).", "Write the values out.", file=file, line=line)
        node = yaml.compose(text, Loader=_Loader)
        sources = {(): Source(file)} | ({} if node is None else dict(_sources(node, (), file)))
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(
            f"This is not valid YAML: {error.problem or error.context}.",
            "Check the indentation, the colons and the quotes on this line and the one before it.",
            file=file,
            line=None if mark is None else mark.line + 1,
        ) from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # thousands of open brackets
        raise RecipeError(
            f"This cannot be read as YAML: {error}.", "Save it as plain UTF-8 text.", file=file
        ) from error
    parsed = Parsed(values, sources)
    _check_finite(values, (), parsed)
    return parsed


def dotted(path: Path) -> str:
    """A path of keys as a person writes it: `training.schedule.kind`, `data.train[0]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _sources(node: yaml.Node, path: Path, file: str) -> Iterator[tuple[Path, Source]]:
    """Each path under a node with its line; refuses a key given twice."""
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), Source(file, item.start_mark.line + 1)
            yield from _sources(item, (*path, index), file)
    elif isinstance(node, yaml.MappingNode):
        first_line: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            here, line = (*path, key.value), key.start_mark.line + 1
            if key.value in first_line:
                raise RecipeError(
                    f"{dotted(here)} is given twice; the first time on line {first_line[key.value]}.",
                    "Keep one of the two.",
                    file=file,
                    line=line,
                    field=dotted(here),
                )
            first_line[key.value] = line
            yield here, Source(file, line)
            yield from _sources(value, here, file)


def _check_finite(value: Any, path: Path, parsed: Parsed) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_finite(item, (*path, key), parsed)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_finite(item, (*path, index), parsed)
    elif isinstance(value, float) and not math.isfinite(value):
        source = parsed.source_of(path)
        raise RecipeError(
            f"{dotted(path) or 'The value'} is {value}.",
            "Give a finite number.",
            file=source.file,
            line=source.line,
            field=dotted(path) or None,
        )
