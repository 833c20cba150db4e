"""Graders by a model: what the judge is asked, how its verdict is read, and what is no verdict."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from luthier.evaluation.grading import Aids, Grade, JudgeSampling, Sample, grader_of
from luthier.types import Message


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
