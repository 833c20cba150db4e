"""Graders: each kind's scores, what they refuse, and what they say where there is no score."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from luthier.errors import UsageError
from luthier.evaluation.grading import Aids, Grade, JudgeSampling, Sample, grader_of
from luthier.evaluation.grading.code import code_in
from luthier.evaluation.grading.formula import Formula
from luthier.evaluation.grading.number import number_in
from luthier.evaluation.metrics import rouge_n
from luthier.types import Message


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


# ── code ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_code_is_what_stands_in_the_last_fence_or_all() -> None:
    assert code_in("No:\n```\nx\n```\nYes:\n```python\ny = 1\n```\nDone.") == "y = 1\n"
    assert code_in("z = 2") == "z = 2"


REACHES_REPORT = """
import sys
frame = sys._getframe()
while frame is not None:
    found = frame.f_locals.get("report")
    if found is not None:
        for number in range(3):
            found("passed")
            found({"passed": number})
    frame = frame.f_back
"""
IN_MEMORY = """
import gc
for each in gc.get_objects():
    if getattr(each, "__name__", "") == "report":
        each("passed")
"""
TESTS = {"type": "code", "tests": ["assert double(2) == 4", "assert double(0) == 0", "{{ item.test }}"]}


@pytest.mark.parametrize(
    ("body", "score"),
    [
        ("def double(x): return 2 * x", 1), ("def double(x): return x * x", 2 / 3), ("double = 3", 0), ("def double(", 0),
        ("import sys; sys.exit(0)", 0), ("import os; os._exit(0)", 0),
        ("def double(x):\n    print('passed')\n    raise SystemExit", 0),
        ("import builtins\nbuiltins.exec = builtins.compile = lambda *a: None", 0),
        ("import builtins\nbuiltins.BaseException = type('E', (Exception,), {})\ndef double(x): raise KeyboardInterrupt", 0),
        ("import builtins\nbuiltins.AssertionError = lambda *a: None\ndef double(x): return 1", 0),
        ("import json, os\njson.dumps = lambda *a: '\"passed\"'\ndef double(x): return 1", 0),
        (REACHES_REPORT, 0), (IN_MEMORY, 0),
        ("import collections\ncollections.namedtuple('P', 'x')\ndef double(x): return 2 * x", 1),
    ],
)  # fmt: skip
def test_code_scores_the_share_of_tests_that_it_passes(body: str, score: float) -> None:
    found = grade(TESTS, f"```python\n{body}\n```", {"test": "assert double(-1) == -2"})
    assert found.score == pytest.approx(score)


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


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def saying(*said: str | None) -> tuple[Aids, list[tuple[Message, ...]]]:
    """Aids whose model says these, and the chats that it is given."""
    asked: list[tuple[Message, ...]] = []

    def ask(chats: Sequence[tuple[Message, ...]], model: str | None, sampling: JudgeSampling) -> list[str | None]:
        asked.extend(chats)
        return list(said)

    return Aids(ask), asked


def test_a_model_s_score_is_the_last_number_within_the_range() -> None:
    values = {
        "type": "score_model", "range": [1, 10], "model": "judge",
        "input": [{"role": "user", "content": "Rate {{ sample.output_text }} for {{ item.q }}"}],
    }  # fmt: skip
    aids, asked = saying("Fine.\n7.5", "I give 12 of 10", "There are 3 faults.\nno idea")
    grades = grader_of(values).grade_all(
        [Sample("A"), Sample("B"), Sample("C"), Sample("D")], [{"q": 1}] * 3 + [{}], aids
    )
    assert [one.score for one in grades] == [7.5, 10, None, None]
    assert "no number" in str(grades[2].fault)
    assert "'q'" in str(grades[3].fault)
    assert [chat[0].content.splitlines()[0] for chat in asked] == ["Rate A for 1", "Rate B for 1", "Rate C for 1"]
    assert "1 (worst) to 10 (best)" in asked[0][0].content


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ("8/10", 8),
        ("Rating: 4/10", 4),
        ("It has 3 faults.\n**8 out of 10**", 8),
        ("2 of 10.", 2),
        ("Score: 6\n```", 6),
        ("I count 9 words.\nI cannot say.", None),
        ("3 or 4", None),
        ("1 to 10: 7", None),
        ("4/5", None),
        ("9/10 for style, 2/10 for truth", None),
        ("", None),
    ],
)
def test_a_score_is_the_one_number_of_the_last_line(said: str, score: float | None) -> None:
    values = {"type": "score_model", "range": [1, 10], "input": [{"content": "Rate {{ sample.output_text }}"}]}
    aids, _ = saying(said)
    (grade,) = grader_of(values).grade_all([Sample("A")], [{}], aids)
    assert grade.score == score
    assert grade.is_unjudged == (score is None)


def test_a_formula_over_a_judge_asks_a_model_and_hands_on_that_it_did_not_judge() -> None:
    judge = {"type": "score_model", "range": [0, 1], "input": [{"content": "Rate {{ sample.output_text }}"}]}
    both = grader_of({"type": "multi", "graders": {"j": judge, "l": {"type": "length", "most": 9}}, "formula": "j + l"})
    assert both.asks_model
    assert both.asked_models == (None,)
    assert not grader_of({"type": "length", "most": 9}).asks_model
    aids, _ = saying("I cannot say")
    (grade,) = both.grade_all([Sample("A")], [{}], aids)
    assert (grade.score, grade.is_unjudged) == (None, True)


def test_a_judge_that_refuses_has_not_judged() -> None:
    values = {"type": "score_model", "input": [{"content": "Rate {{ sample.output_text }}"}]}
    aids, _ = saying(None, "1")
    assert grader_of(values).grade_all([Sample("A"), Sample("B")], [{}, {}], aids) == [
        Grade(None, "the judge refused", is_unjudged=True), Grade(1)
    ]  # fmt: skip


def test_a_model_s_label_passes_or_not() -> None:
    values = {
        "type": "label_model", "labels": ["good", "not good", "bad"], "passing_labels": ["good"],
        "input": [{"content": "Is it good? {{ sample.output_text }}"}],
    }  # fmt: skip
    aids, _ = saying("It is good.", "Hence:\n**Good**", "not good", "bad", "goodish")
    grades = grader_of(values).grade_all([Sample("x")] * 5, [{}] * 5, aids)
    assert [one.score for one in grades] == [1, 1, 0, 0, None]
    assert grader_of(values).grade(Sample("x"), {}).fault == "there is no model to ask"


ASKING = {"type": "score_model", "model": "judge", "input": [{"content": "Rate {{ sample.output_text }}"}]}


def test_a_grader_as_openai_s_service_writes_it_is_asked_in_its_words() -> None:
    values = {
        "type": "score_model", "name": "kind", "model": "judge", "range": [0, 1],
        "sampling_params": {"max_completions_tokens": 7, "temperature": None, "seed": 3, "reasoning_effort": None},
        "input": [
            {"type": "message", "role": "system", "content": {"type": "input_text", "text": "Be fair."}},
            {"role": "user", "content": [{"type": "input_text", "text": "Rate:"}, {"type": "output_text", "text": "{{ sample.output_text }}"}]},
        ],
    }  # fmt: skip
    drawn: list[tuple[str | None, JudgeSampling]] = []
    chats: list[tuple[Message, ...]] = []

    def ask(given: Sequence[tuple[Message, ...]], model: str | None, sampling: JudgeSampling) -> list[str | None]:
        drawn.append((model, sampling))
        chats.extend(given)
        return ["1"]

    assert grader_of(values).grade_all([Sample("A")], [{}], Aids(ask)) == [Grade(1)]
    assert drawn == [("judge", JudgeSampling(max_new_tokens=7, seed=3))]
    assert [(turn.role, turn.content.partition("\n\nEnd with")[0]) for turn in chats[0]] == [
        ("system", "Be fair."), ("user", "Rate:\nA")
    ]  # fmt: skip


@pytest.mark.parametrize(("metric", "library"), [("bleu", "sacrebleu"), ("fuzzy_match", "rapidfuzz")])
def test_a_likeness_whose_library_is_not_installed_is_refused_before_anything_is_answered(
    metric: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=library):
        grader_of({"type": "text_similarity", "reference": "a", "evaluation_metric": metric})


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


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
