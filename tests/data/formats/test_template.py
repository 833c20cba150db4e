"""Rows made by a template of the recipe's own."""

from __future__ import annotations

from typing import Any

import pytest
from form_rows import fault_of, records_of, rows_of, said

from luthier.data.formats import faults, recognise_any, to_records
from luthier.data.settings import DataSettings, RowTemplate, Wishes
from luthier.errors import DataError, RecipeError
from luthier.recipe import make_recipe
from luthier.types import (
    Choice,
    Completion,
    Conversation,
    Gives,
    Labelled,
    Message,
    PlainText,
    Preference,
    Ranking,
    Record,
    Scored,
    Similar,
    Tagged,
    Verdict,
)

VALUES = {
    "Best Answer": "Paris",
    "q": "Capital?",
    "n": 3,
    "x": 0.5,
    "ok": True,
    "in": {"a": {"b": "deep"}},
    "l": ["1", "2"],
    "x2": "2",
    "none": "",
}


def wishes(**template: str | tuple[str, ...]) -> Wishes:
    return Wishes(template=RowTemplate(**template))


LISTS = {
    "w": ["Anna", "in", "Oslo"],
    "t": ["B-per", "O", "B-loc"],
    "good": "yes",
    "bad": "no",
    "r": {"x": 2},
    "chat": [{"role": "user", "content": "Well?"}],
    "all": ["no", "yes"],
    "s": [0.5, 2],
}

MADE: list[tuple[dict[str, str | tuple[str, ...]], Record, Gives]] = [
    (
        {"prompt": "{q}", "completion": "{n}", "verdict": "{ok}"},
        Verdict(Completion("Capital?", "3"), is_good=True),
        "verdicts",
    ),
    ({"question": "{q}", "options": "{l}", "answer": "{x2}"}, Choice("Capital?", ("1", "2"), 1), "choices"),
    (
        {"question": "{q}", "options": ("{Best Answer}", "{n} towns", "{none}"), "answer": "B"},
        Choice("Capital?", ("Paris", "3 towns"), 1),
        "choices",
    ),
    (
        {"prompt": "{q}", "completion": "{n}", "weight": "{x}"},
        Completion("Capital?", "3", weight=0.5),
        "text",
    ),
    ({"text": "{q}", "label": "{n}", "weight": "2"}, Labelled("Capital?", None, "3", weight=2.0), "labels"),
    ({"prompt": "Q: {q}\n", "completion": "{Best Answer}"}, Completion("Q: Capital?\n", "Paris"), "text"),
    ({"text": "{q} {{{n}}} {x} {ok}"}, PlainText("Capital? {3} 0.5 true"), "text"),
    ({"text": "{in.a.b}|{ l }"}, PlainText("deep|1\n2"), "text"),
    ({"text": "{q}", "label": " {n} "}, Labelled("Capital?", None, "3"), "labels"),
    ({"text": "{q}", "text_pair": "{l}", "label": "{ok}"}, Labelled("Capital?", "1\n2", "true"), "labels"),
    ({"text": "{q}", "score": "{x}"}, Scored("Capital?", None, 0.5), "scores"),
    ({"anchor": "{q}", "positive": "{Best Answer}"}, Similar("Capital?", "Paris"), "similar"),
    ({"anchor": "{q}", "positive": "{n}", "negative": "{x}"}, Similar("Capital?", "3", ("0.5",)), "similar"),
    (
        {"prompt": "{q}", "chosen": "{n}", "rejected": "{x}"},
        Preference(Completion("Capital?", "3"), Completion("Capital?", "0.5")),
        "preferences",
    ),
]


@pytest.mark.parametrize(("template", "record", "gives"), MADE)
def test_a_template_makes_any_columns_into_a_record(template: dict[str, str], record: Record, gives: Gives) -> None:
    wish = wishes(**template)
    assert records_of(VALUES, takes=gives, form="template", wishes=wish) == [record]
    assert recognise_any(rows_of(VALUES), wishes=wish)[:3] == ("template", gives, "data.template says so")


@pytest.mark.parametrize(
    ("template", "record"),
    [
        ({"tokens": "{w}", "tags": "{t}"}, Tagged(("Anna", "in", "Oslo"), ("B-per", "O", "B-loc"))),
        (
            {"prompt": "Well?", "answers": ("{bad}", "{good}!"), "ranks": ("{r.x}", "1")},
            Ranking((Completion("Well?", "no"), Completion("Well?", "yes!")), (1, 0)),
        ),
        (
            {"prompt": "{chat}", "answers": "{all}", "scores": "{s}"},
            Ranking(
                tuple(
                    Conversation((Message("user", "Well?"), Message("assistant", answer))) for answer in ("no", "yes")
                ),
                (1, 0),
            ),
        ),
    ],
)
def test_a_template_names_the_columns_of_lists(template: dict[str, Any], record: Record) -> None:
    gives: Gives = "tags" if isinstance(record, Tagged) else "rankings"
    wish = wishes(**template)
    assert records_of(LISTS, takes=gives, form="template", wishes=wish) == [record]
    assert recognise_any(rows_of(LISTS), wishes=wish)[:3] == ("template", gives, "data.template says so")


def test_tags_of_a_template_are_in_the_order_that_the_rows_show() -> None:
    wish = wishes(tokens="{w}", tags="{t}")
    begun, plain = {"w": ["a", "b"], "t": ["B-x", "I-x"]}, {"w": ["a", "b"], "t": ["I-x", "I-x"]}
    found = to_records(rows_of(plain), "auto", "tags", wish)
    assert [record.tags for record, _ in found.records if isinstance(record, Tagged)] == [("I-x", "I-x")]
    assert any("begin with I-" in note for note in found.notes)
    fault = fault_of(begun, plain, "tags", wish)
    assert (fault.field, "goes on with no entity" in fault.found) == ("data.template.tags[0]", True)


@pytest.mark.parametrize(
    ("values", "field", "found"),
    [
        ({"t": ["O"]}, "data.template.tags", "3 words and 1 tags"),
        ({"w": "Anna"}, "data.template.tokens", "list"),
        ({"w": None}, "data.template.tokens", "w"),
    ],
)
def test_lists_of_a_template_that_do_not_fit_are_a_fault(values: dict[str, Any], field: str, found: str) -> None:
    fault = fault_of(LISTS, {**LISTS, **values}, "tags", wishes(tokens="{w}", tags="{t}"))
    assert found in f"{fault.field}: {fault.found}"
    assert fault.field in (field, "w")


def test_ranks_of_a_template_that_are_none_are_a_fault() -> None:
    wish = wishes(prompt="Well?", answers=("{good}", "{bad}"), ranks=("1", "{r}"))
    fault = fault_of({**LISTS, "r": 2}, {**LISTS, "r": "last"}, "rankings", wish)
    assert (fault.field, "'last'" in fault.found) == ("data.template.ranks[1]", True)


def test_a_template_of_roles_makes_a_conversation() -> None:
    wish = wishes(system="Be brief.", user="{q}", assistant="{Best Answer}!")
    (record,) = records_of(VALUES, wishes=wish)
    assert isinstance(record, Conversation)
    assert said(record.messages) == [
        ("system", "Be brief.", None),
        ("user", "Capital?", None),
        ("assistant", "Paris!", None),
    ]


def test_columns_that_the_template_leaves_out_are_named() -> None:
    notes = to_records(rows_of(VALUES), "auto", wishes=wishes(text="{q}")).notes
    assert notes == ("Ignored columns: Best Answer, n, x, ok, in, l, x2, none.",)


def test_a_column_that_is_not_there_is_told_with_one_that_is_near() -> None:
    wish = wishes(prompt="{question}", completion="{answr}")
    (fault,) = faults(rows_of({"question": "a", "answer": "b"}), "auto", wishes=wish)
    assert (fault.file, fault.field) == ("rows.jsonl", "data.template.completion")
    assert "names {answr}, but the columns are question, answer" in fault.found
    assert fault.mend == "Did you mean {answer}?"


@pytest.mark.parametrize(
    ("values", "field", "found"),
    [
        ({"a": "x", "in": {"b": "y"}}, None, None),
        ({"in": {"b": "y"}}, "a", "'a' is missing; there is in"),
        ({"a": None, "in": {"b": "y"}}, "a", "found null"),
        ({"a": {"b": 1}, "in": {"b": "y"}}, "a", "found an object"),
        ({"a": "x", "in": {"c": "y"}}, "in.b", "'b' is missing; there is c"),
        ({"a": "x", "in": "y"}, "in.b", "'b' is missing; there is text"),
        ({"a": "x", "in": {"b": " "}}, "data.template.completion", "the answer is empty"),
    ],
)
def test_a_row_that_the_template_cannot_fill_is_a_fault(
    values: dict[str, Any], field: str | None, found: str | None
) -> None:
    wish = wishes(prompt="{a}", completion="{in.b}")
    if found is None:
        assert faults(rows_of(values), "auto", wishes=wish) == []
        return
    fault = fault_of({"a": "x", "in": {"b": "y"}}, values, wishes=wish)
    assert fault.field == field
    assert found in fault.found


@pytest.mark.parametrize(
    ("values", "field", "found"),
    [({"a": "high"}, "data.template.score", "found 'high'"), ({"a": ""}, "data.template.score", "empty")],
)
def test_a_score_that_is_no_number_is_a_fault(values: dict[str, Any], field: str, found: str) -> None:
    fault = fault_of({"a": "1"}, values, "scores", wishes(text="t", score="{a}"))
    assert fault.field == field
    assert found in fault.found


@pytest.mark.parametrize(
    ("said", "is_good"),
    [(True, True), ("no", False), ("Good", True), ("bad", False), (1, True), (-1, False), (0.0, False), ("1", True)],
)
def test_a_verdict_may_be_said_in_several_ways(said: object, is_good: bool) -> None:
    wish = wishes(prompt="p", completion="c", verdict="{v}")
    assert records_of({"v": said}, takes="verdicts", wishes=wish) == [Verdict(Completion("p", "c"), is_good)]
    fault = fault_of({"v": True}, {"v": "so so"}, "verdicts", wish)
    assert (fault.field, "'so so'" in fault.found) == ("data.template.verdict", True)


def test_answers_of_a_template_count_from_what_the_rows_show_and_one_beyond_the_options_is_a_fault() -> None:
    wish = wishes(question="{q}", options=("{a}", "{b}"), answer="{n}")
    row = {"q": "Which?", "a": "one", "b": "two"}
    for numbers, places in (((1, 2, 1), (0, 1, 0)), ((0, 1, 0), (0, 1, 0)), (("A", "two", "b"), (0, 1, 1))):
        found = to_records(rows_of(*({**row, "n": number} for number in numbers)), "auto", "choices", wish)
        assert [record.answer for record, _ in found.records if isinstance(record, Choice)] == list(places)
        assert any("count from 1" in note for note in found.notes) is (numbers[0] == 1)
    fault = fault_of({**row, "n": 1}, {**row, "n": 7}, "choices", wish)
    assert (fault.field, "none of the 2 options" in fault.found) == ("data.template.answer", True)


def test_a_weight_of_a_template_that_is_none_is_a_fault() -> None:
    wish = wishes(prompt="p", completion="c", weight="{w}")
    for wrong in ("-1", "much", float("inf")):
        assert fault_of({"w": 1}, {"w": wrong}, wishes=wish).field == "data.template.weight"


def test_equal_answers_of_a_template_are_a_fault() -> None:
    wish = wishes(prompt="p", chosen="{a}", rejected="{b}")
    fault = fault_of({"a": "x", "b": "y"}, {"a": "x", "b": "x"}, "preferences", wish)
    assert (fault.field, "the same" in fault.found) == ("data.template.rejected", True)


def test_a_template_for_another_objective_is_refused() -> None:
    with pytest.raises(DataError, match="give labels, and the objective learns from text") as caught:
        to_records(rows_of({"a": "x"}), "auto", wishes=wishes(text="{a}", label="{a}"))
    assert caught.value.field == "data.template"


# ── in a recipe ─────────────────────────────────────────────────────────────────────────────────────────────────────


def recipe_with(objective: str = "sft", **data: Any) -> Any:
    values = {"model": "m", "data": {"train": "owner/rows", **data}, "objective": {"kind": objective}}
    return make_recipe(values)


@pytest.mark.parametrize(
    ("template", "field", "found"),
    [
        ({"prompt": "{q}"}, "data.template", "set objective.kind to grpo"),
        ({"completion": "{q}"}, "data.template", "has completion, which is no kind of row"),
        ({"prompt": "{q}", "completion": "{a}", "label": "{l}"}, "data.template", "prompt, completion, label"),
        ({}, "data.template", "has nothing"),
        ({"text": "{q} }"}, "data.template.text", "a } stands alone"),
        ({"text": "{q} {"}, "data.template.text", "a { stands alone"),
        ({"text": "words alone"}, "data.template", "names no column"),
        ({"prompt": "{q}", "completoin": "{a}"}, "data.template.completoin", "completoin"),
        ({"text": "{q}", "label": "{l}"}, "data.template", "not what objective.kind sft learns from"),
    ],
)
def test_a_template_that_makes_no_row_is_refused_in_the_recipe(
    template: dict[str, str], field: str, found: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_with(template=template)
    assert caught.value.field == field
    assert found in str(caught.value)


def test_a_template_and_a_form_do_not_go_together() -> None:
    template = {"text": "{q}"}
    with pytest.raises(RecipeError, match=r"data\.format is chat, but data\.template says"):
        recipe_with(template=template, format="chat")
    with pytest.raises(RecipeError, match=r"data\.format is template, but there is none"):
        recipe_with(format="template")
    assert recipe_with(template=template, format="template").data.wishes.template == RowTemplate(text="{q}")
    assert recipe_with("classification", template={**template, "label": "{l}"}).data.template.gives == "labels"


@pytest.mark.parametrize(("form", "kind"), [("oasst", "sft"), ("qa", "sft"), ("classification", "classification")])
def test_forms_go_with_the_objectives_that_learn_from_them(form: str, kind: str) -> None:
    assert recipe_with(kind, format=form).data.format == form


@pytest.mark.parametrize("form", ["tags", "choices", "scores", "similar", "rankings", "verdicts"])
def test_forms_that_sft_does_not_learn_from_are_refused_in_the_recipe(form: str) -> None:
    with pytest.raises(RecipeError, match=r"not what objective\.kind sft learns from"):
        recipe_with(format=form)


@pytest.mark.parametrize(
    ("form", "kind", "mend"),
    [
        ("chat", "classification", "or set objective.kind to sft."),
        ("classification", "sft", "or set objective.kind to classification."),
        ("verdicts", "sft", "or set objective.kind to kto."),
    ],
)
def test_a_form_for_another_objective_is_refused_with_the_objective_for_it(form: str, kind: str, mend: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_with(kind, format=form)
    assert str(caught.value).rstrip().endswith(mend)


def test_wishes_come_from_the_data_settings() -> None:
    assert DataSettings(train="x", rationale="leave_out", threads="all").wishes == Wishes(None, "leave_out", "all")
