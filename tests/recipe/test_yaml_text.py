"""YAML as recipes read it: numbers, lines, and what is refused."""

from __future__ import annotations

import pytest

from luthier.errors import RecipeError
from luthier.recipe.yaml_text import Source, dotted, parse_yaml, to_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2E3", 2000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("10", 10),
        ("-1", -1),
        ("2024-01-01", "2024-01-01"),
        ("none", "none"),
        ("null", None),
        ("off", False),
        ("'7'", "7"),
        ("smollm2-135m", "smollm2-135m"),
    ],
)
def test_a_plain_value_is_read_as_a_person_means_it(text: str, value: object):
    read = parse_yaml(f"a: {text}", "r.yaml").values["a"]
    assert (read, type(read)) == (value, type(value))


def test_every_value_knows_its_line():
    parsed = parse_yaml("a: 1\nb:\n  - x\n  - y: 2\n", "r.yaml")
    assert parsed.source_of(("b", 1, "y")) == Source("r.yaml", 4)
    assert parsed.source_of(("b", 0)) == Source("r.yaml", 3)


def test_a_missing_value_is_placed_at_the_block_that_it_is_missing_from():
    parsed = parse_yaml("a:\n  b: 1\n", "r.yaml")
    assert parsed.source_of(("a", "c", "d")) == Source("r.yaml", 1)
    assert parsed.source_of(("z",)) == Source("r.yaml", None)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("a: 1\nb: [1,\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", 3, "first time on line 1"),
        ("a:\n  b: 1\n  b: 2\n", 3, "a.b is given twice"),
        ("a: &x 1\nb: *x\n", 2, "no aliases"),
        ("a: 1\nb: .inf\n", 2, "b is inf"),
        ("a: [1, .nan]\n", 1, "is nan"),
        ("a: !!python/object/apply:os.getcwd []\n", 1, "not valid YAML"),
        ("? [1, 2]\n: 3\n", 1, "not valid YAML"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_line(text: str, line: int, says: str):
    with pytest.raises(RecipeError, match=says) as caught:
        parse_yaml(text, "r.yaml")
    assert (caught.value.file, caught.value.line) == ("r.yaml", line)
    assert caught.value.mend


def test_control_characters_are_refused():
    with pytest.raises(RecipeError, match="UTF-8"):
        parse_yaml("a: \x00", "r.yaml")


def test_brackets_without_end_are_refused():
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        parse_yaml("a: " + "[" * 5000 + "]" * 5000, "r.yaml")


def test_a_path_of_keys_is_written_as_a_person_writes_it():
    assert dotted(("data", "train", 0)) == "data.train[0]"
    assert dotted(()) == ""


@pytest.mark.parametrize(
    "value",
    [
        "1e-4", "2026-01-31", "yes", "null", "", " ", "a: b", "# no comment", "- item", "two\nlines\n", "tab\tbell\x07", "ünï 漢 😀",
        "*alias", "word " * 60, 1e-4, 1e300, -0.0, 12, True, None, [], {}, ["a", ["b"], {"c": 1}], "\u2028", "'single' \"double\"",
    ],
)  # fmt: skip
def test_what_is_written_is_read_back(value: object) -> None:
    values = {"first": value, "nested": {"list": [value, value]}}
    text = to_yaml(values)
    assert parse_yaml(text, "recipe.yaml").values == values
    assert list(parse_yaml(text, "recipe.yaml").values) == ["first", "nested"]
