"""Graders: each kind's scores, what they refuse, and what they say where there is no score."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from luthier.errors import UsageError
from luthier.evaluation.grading import Aids, Grade, Sample, grader_of
from luthier.evaluation.grading.formula import Formula
from luthier.evaluation.grading.number import number_in
from luthier.evaluation.metrics import rouge_n


def grade(values: Mapping[str, Any], text: str, item: Mapping[str, Any] | None = None) -> Grade:
    return grader_of(values).grade(Sample(text), item or {})


# ── rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("operation", "text", "score"),
    [
        ("eq", " Paris\n", 1), ("eq", "paris", 0), ("ne", "paris", 1), ("ne", "Paris", 0), ("like", "It is Paris.", 1),
        ("like", "it is paris.", 0), ("ilike", "it is PARIS.", 1), ("ilike", "Rome", 0),
    ],
)  # fmt: skip
def test_a_string_is_checked_as_its_operation_says(operation: str, text: str, score: float) -> None:
    values = {"type": "string_check", "reference": "{{ item.city }}", "operation": operation}
    assert grade(values, text, {"city": "Paris"}).score == score


def test_places_reach_into_columns_and_into_an_answer_that_is_json() -> None:
    values = {"type": "string_check", "input": "{{ sample.output_json.a[1].b }}", "reference": "{{item.rows.0.name}}"}
    assert grade(values, '{"a": [0, {"b": "x"}]}', {"rows": [{"name": "x"}]}).score == 1
    assert (
        grade(values, '{"a": []}', {"rows": [{"name": "x"}]}).fault
        == "{{ sample.output_json.a[1].b }} finds nothing at '1'"
    )
    assert "'name'" in (grade(values, '{"a": [0, {"b": 1}]}', {"rows": [{}]}).fault or "")


@pytest.mark.parametrize("answer", ["5", "true", "null", "2.5", '"text"', "[1]", "no JSON", "{}"])
def test_an_answer_without_the_key_that_a_place_names_has_no_score(answer: str) -> None:
    values = {"type": "string_check", "input": "{{ sample.output_json.x }}", "reference": "5"}
    assert grade(values, answer) == Grade(None, "{{ sample.output_json.x }} finds nothing at 'x'")


def test_a_column_that_json_has_no_form_for_is_read_as_text() -> None:
    row = {"day": date(2024, 2, 29)}
    assert grade({"type": "string_check", "reference": "{{ item.day }}"}, "2024-02-29", row).score == 1
    source = "def grade(sample, item):\n    return item['day'] == '2024-02-29'"
    assert grade({"type": "python", "source": source}, "", row).score == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("First 3, then 12.5", Fraction(25, 2)), ("#### 1,234", 1234), ("so 5 + 5 = 10\n#### 10\n", 10), ("-3", -3), ("−3", -3),
        ("The answer is 1/2 of 30", Fraction(1, 2)), (r"thus \boxed{7} or 8", 7), ("$1,000,000.50!", Fraction(2000001, 2)),
        ("2e3", 2000), ("none", None), ("a1 b2", None), ("1/0", None), ("answer: 4. In 2020", 4), ("9e999", None), (".5", Fraction(1, 2)),
    ],
)  # fmt: skip
def test_the_number_that_a_text_comes_to(text: str, number: Fraction | None) -> None:
    assert number_in(text) == number


@given(st.integers(-(10**12), 10**12), st.booleans())
def test_whole_numbers_are_read_with_and_without_commas(number: int, has_commas: bool) -> None:
    assert number_in(f"It is {number:,}." if has_commas else f"It is {number}.") == number


def test_a_number_may_be_off_by_its_tolerance_only() -> None:
    values = {"type": "number", "reference": "{{ item.answer }}", "tolerance": 0.01}
    scores = [grade(values, text, {"answer": "200"}).score for text in ("202", "198", "202.1", "none")]
    assert scores == [1, 1, 0, 0]
    assert grade(values, "1", {"answer": "none"}).fault == "the reference holds no number"
    assert grade({**values, "tolerance": 0}, "0.30", {"answer": 0.3}).score == 1


def test_a_pattern_is_found_or_fits_the_whole() -> None:
    assert grade({"type": "pattern", "pattern": r"<a>.*</a>"}, "x <a>\n1</a> y").score == 1
    assert grade({"type": "pattern", "pattern": r"<a>.*</a>", "whole": True}, "x <a>1</a>").score == 0
    assert grade({"type": "pattern", "pattern": r"\d+", "whole": True}, " 12 ").score == 1


def test_json_is_judged_by_its_schema_and_by_its_fields() -> None:
    schema = {
        "type": "object",
        "required": ["n"],
        "properties": {"n": {"type": "integer"}},
        "additionalProperties": False,
    }
    values = {"type": "json_schema", "schema": schema}
    assert [grade(values, text).score for text in ('{"n": 1}', '{"n": "1"}', '{"n": 1, "m": 2}', "n: 1", "null")] == [
        1,
        0,
        0,
        0,
        0,
    ]
    assert grade({"type": "json_schema", "schema": {"type": "null"}}, "null").score == 1
    fields = {"type": "json_fields", "reference": "{{ item.a }}"}
    assert grade(fields, '{"x": 1, "y": 3}', {"a": {"x": 1, "y": 2}}).score == 0.5
    assert grade(fields, "{}", {"a": "no object"}).score is None


@pytest.mark.parametrize(("words", "score"), [(6, 0), (7, -0.25), (8, -0.5), (10, -1), (50, -1)])
def test_the_penalty_of_length_is_dapos(words: int, score: float) -> None:
    assert grade({"type": "length", "most": 10, "margin": 4}, "w " * words).score == score
    assert grade({"type": "length", "most": 10}, "w " * words).score == (-1 if words > 10 else 0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_rouge_n_is_that_of_rouge_score(n: int) -> None:
    pairs = [
        ("the cat sat on the mat", "the cat the cat sat"),
        ("a b", "b a"),
        ("x", "x y z w"),
        ("one two three four", "two three four five"),
    ]
    scorer = rouge_scorer.RougeScorer([f"rouge{n}"], use_stemmer=False)
    for answer, reference in pairs:
        expected = scorer.score(reference, answer)[f"rouge{n}"].fmeasure
        assert rouge_n(answer, reference, n) == pytest.approx(expected)
        values = {"type": "text_similarity", "reference": "{{ item.r }}", "evaluation_metric": f"rouge_{n}"}
        assert grade(values, answer, {"r": reference}).score == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["fuzzy_match", "bleu", "gleu", "rouge_l"])
def test_likeness_is_one_for_the_same_and_less_for_another(metric: str) -> None:
    values = {"type": "text_similarity", "reference": "{{ item.r }}", "evaluation_metric": metric}
    reference = "the parcel left the house on monday morning"
    same, near, far = (grade(values, t, {"r": reference}).score for t in (reference, reference[:-8], "nothing of it"))
    assert same == pytest.approx(1)
    assert near is not None
    assert far is not None
    assert 1 > near > far >= 0


CATASTROPHE = "a" * 40 + "!"
"""What (a+)+$ holds up for longer than anybody waits."""


def test_a_text_that_holds_a_pattern_up_has_no_score_and_stops_nobody() -> None:
    began = time.perf_counter()
    samples = [Sample(text) for text in ("aaa", CATASTROPHE, "b", "caa")]
    pattern = grader_of({"type": "pattern", "pattern": "(a+)+$"})
    found = pattern.grade_all(samples, [{}] * 4, Aids())
    assert [each.score for each in found] == [1, None, 0, 1]
    assert found[1].fault == "the pattern took more than 1 s"
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    "schema",
    [{"type": "string", "pattern": "(a+)+$"}, {"type": "object", "patternProperties": {"(a+)+$": {"type": "number"}}}],
)
def test_a_text_that_holds_a_schema_up_has_no_score(schema: dict[str, Any]) -> None:
    texts = [json.dumps(text if schema["type"] == "string" else {text: 1}) for text in ("aaa", CATASTROPHE)]
    form = grader_of({"type": "json_schema", "schema": schema})
    found = form.grade_all([Sample(text) for text in [*texts, "no JSON"]], [{}] * 3, Aids())
    assert [each.score for each in found] == [1, None, 0]
    assert "pattern" in (found[1].fault or "")


# ── Python ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_python_of_the_user_gives_any_number_or_says_why_not() -> None:
    values = {"type": "python", "source": "def grade(sample, item):\n    return eval(item['f'], {'s': sample})"}
    assert grade(values, "four", {"f": "len(s['output_text']) / 2"}).score == 2
    assert grade(values, '{"n": 3}', {"f": "s['output_json']['n']"}).score == 3
    assert grade(values, "x", {"f": "1 / 0"}).fault == "grade failed: ZeroDivisionError: division by zero"
    assert grade(values, "x", {"f": "float('nan')"}).fault == "grade gave nan, which is no number"
    assert grade(values, "x", {"f": "'good'"}).fault == "grade gave \"'good'\", which is no number"
    late = {**values, "source": "def grade(sample, item):\n    while True: pass", "limits": {"seconds": 0.5}}
    assert grade(late, "x").fault == "grade took more than 0.5 s"


# ── formulas ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a + 2 * b", 7), ("2 ^ b * a", 8), ("-(a - b) / 2", 1), ("max(a, b, 9) - min(a)", 8), ("sqrt(b + 1) + abs(-a)", 3),
        ("floor(b / 2) + ceil(b / 2)", 3), ("log(exp(b))", 3),
    ],
)  # fmt: skip
def test_formulas_compute(text: str, value: float) -> None:
    assert Formula(text).value({"a": 1.0, "b": 3.0}) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "a.b",
        "__import__('os')",
        "a if b else 1",
        "[a]",
        "a < b",
        "f(a)",
        "max()",
        "abs(a, b)",
        "True",
        "'x'",
        "a; b",
        "",
        "(" * 900,
        "lambda: 1",
    ],
)
def test_nothing_but_arithmetic_is_a_formula(text: str) -> None:
    with pytest.raises(ValueError, match=r"formula|may not hold|takes one number|numbers only"):
        Formula(text)


def test_several_scores_make_one_and_what_is_missing_is_named() -> None:
    parts = {"right": {"type": "number", "reference": "{{ item.a }}"}, "short": {"type": "length", "most": 3}}
    values = {"type": "multi", "graders": parts, "calculate_output": "right + 0.5 * short"}
    assert grade(values, "it is surely 4", {"a": "4"}) == Grade(0.5, None, {"right": 1, "short": -1})
    assert grade(values, "4", {}).fault == "right: {{ item.a }} finds nothing at 'a'"
    assert "no value" in str(grade({**values, "calculate_output": "1 / short"}, "4", {"a": "4"}).fault)


def test_one_grader_alone_in_multi_goes_by_its_own_name() -> None:
    values = {
        "type": "multi",
        "graders": {"type": "length", "name": "brief", "most": 2},
        "calculate_output": "brief + 1",
    }
    assert grade(values, "one two").score == 1


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


ASKING = {"type": "score_model", "model": "judge", "input": [{"content": "Rate {{ sample.output_text }}"}]}


@pytest.mark.parametrize(("metric", "library"), [("bleu", "sacrebleu"), ("fuzzy_match", "rapidfuzz")])
def test_a_likeness_whose_library_is_not_installed_is_refused_before_anything_is_answered(
    metric: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=library):
        grader_of({"type": "text_similarity", "reference": "a", "evaluation_metric": metric})


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"type": "nope"}, "type", "string_check"),
        ({"type": "number"}, "reference", "required"),
        ({"type": "number", "reference": "{{ row.a }}"}, "reference", "names nothing"),
        ({"type": "number", "reference": "{{ sample.text }}"}, "reference", "output_text"),
        ({"type": "pattern", "pattern": "("}, "pattern", "regular expression"),
        ({"type": "json_schema", "schema": {"type": 3}}, "schema", "no JSON schema"),
        ({"type": "length", "most": 2, "margin": 3}, "margin", "must not exceed"),
        ({"type": "code", "tests": []}, "tests", "at least 1"),
        ({"type": "python", "source": "x ="}, "source", "no Python"),
        ({"type": "python", "source": "def f(): pass"}, "source", "must define grade"),
        (
            {"type": "multi", "graders": {"a": {"type": "length", "most": 1}}, "formula": "a + c"},
            "formula",
            "names 'c'",
        ),
        ({"type": "score_model", "input": [{"content": "x"}], "range": [1, 1]}, "range", "least"),
        (
            {"type": "label_model", "input": [{"content": "x"}], "labels": ["a", "b"], "passing_labels": ["c"]},
            "passing_labels",
            "none of",
        ),
        ({"type": "length", "most": 1, "colour": 3}, "colour", "not permitted"),
        (
            {"type": "text_similarity", "reference": "a", "evaluation_metric": "cosine"},
            "evaluation_metric",
            "fuzzy_match",
        ),
        (
            {"type": "text_similarity", "reference": "a", "evaluation_metric": "meteor"},
            "evaluation_metric",
            "fuzzy_match",
        ),
        (
            {**ASKING, "sampling_params": {"reasoning_effort": "low"}},
            "sampling_params.reasoning_effort",
            "cannot be set",
        ),
        ({**ASKING, "sampling_params": {"max_tokens": 3}}, "sampling_params.max_tokens", "not permitted"),
        (
            {**ASKING, "sampling_params": {"max_completions_tokens": 0}},
            "sampling_params.max_completions_tokens",
            "greater",
        ),
        (
            {**ASKING, "sampling_params": {"max_completions_tokens": 3, "max_new_tokens": 3}},
            "sampling_params.max_completions_tokens",
            "give one",
        ),
        (
            {**ASKING, "input": [{"content": {"type": "input_image", "image_url": "{{ item.url }}"}}]},
            "input.0.content",
            "'input_image'",
        ),
        ({**ASKING, "input": [{"content": [{"type": "input_text"}]}]}, "input.0.content", "'input_text'"),
        ({**ASKING, "input": [{"content": 3}]}, "input.0.content", "string"),
        ({**ASKING, "input": [{"content": [{"type": "text", "text": "{{ x }}"}]}]}, "input.0.content", "names nothing"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_their_field(values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as raised:
        grader_of(values)
    assert raised.value.field == field


def test_a_score_that_is_not_finite_is_a_fault() -> None:
    assert Grade.of(math.inf) == Grade(None, "the score is inf")


def test_every_grader_of_the_page_is_read_and_the_page_shows_every_kind() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "grading.md").read_text("utf-8")
    shown = [
        grader_of(json.loads(block)) for block in re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    ]
    assert {grader.kind for grader in shown} == {
        "string_check", "number", "pattern", "json_schema", "json_fields", "length", "text_similarity", "code", "python",
        "score_model", "label_model", "multi", "metric", "instructions",
    }  # fmt: skip
