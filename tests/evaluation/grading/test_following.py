"""Instructions that a program can check, each kept by one answer and broken by another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.evaluation.grading import Sample, grader_of
from luthier.evaluation.grading.following import CHECKS, Unknown, follows, sentences_in, variants

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["Lamp", "sea"]}, "A lamp by the SEA.", "A lamp."),
    ("keywords:frequency", {"keyword": "go", "relation": "at least", "frequency": 2}, "Go, go!", "Go."),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "A rocket.", "A Rock."),
    ("keywords:letter_frequency", {"letter": "e", "let_relation": "less than", "let_frequency": 2}, "Eh", "Eel"),
    ("language:response_language", {"language": "hi"}, "यह एक छोटा वाक्य है", "This is English."),
    ("language:response_language", {"language": "de"}, "Das ist der Hund und die Katze ist nicht hier.", "The dog and the cat are not in the house."),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}, "One. Two!", "One. Two. Three?"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "one two three", "one two"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "so"}, "Well.\n\nSo, yes.", "So.\n\nWell."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. More.", "Bye."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", "*one*"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\na\nSECTION 2\nb", "SECTION 1\na"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{a: 1}"),
    ("detectable_format:title", {}, "<<A title>>\ntext", "<<>>\ntext"),
    ("combination:two_responses", {}, "One.******Two.", "One.******One."),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hello."}, "say hello. Hello!", "Hello!"),
    ("startend:end_checker", {"end_phrase": "That is all."}, "Well. That is all.", "That is all, folks"),
    ("startend:quotation", {}, '"So it is."', '"So" it is.'),
    ("change_case:capital_word_frequency", {"capital_relation": "less than", "capital_frequency": 2}, "ONE word", "TWO WORDS"),
    ("change_case:english_capital", {}, "ALL LOUD.", "Not all LOUD."),
    ("change_case:english_lowercase", {}, "all quiet.", "Not quiet."),
    ("punctuation:no_comma", {}, "None here.", "One, here."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), CASES, ids=lambda value: str(value)[:40])
def test_a_check_tells_an_answer_that_keeps_it_from_one_that_does_not(
    name: str, arguments: dict[str, Any], kept: str, broken: str
) -> None:
    assert follows(name, arguments, kept)
    assert not follows(name, arguments, broken)


def test_every_check_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS)


def test_sentences_end_at_stops_and_at_lines() -> None:
    assert len(sentences_in('He said "Yes." Then he left!\n- a point\n\nIs 3.5 a number?')) == 4


def test_what_cannot_be_checked_gives_no_score_and_says_why() -> None:
    for name, arguments, why in (
        ("keywords:nothing", {}, "no check"),
        ("keywords:existence", {}, "needs 'keywords'"),
        ("keywords:existence", {"keywords": "lamp"}, "list of words"),
        ("language:response_language", {"language": "sw"}, "cannot be told"),
        ("length_constraints:number_words", {"relation": "about", "num_words": 3}, "about"),
    ):
        with pytest.raises(Unknown, match=why):
            follows(name, arguments, "text")


def test_a_row_names_its_instructions_and_the_grader_counts_each_or_all() -> None:
    row = {
        "instruction_id_list": ["punctuation:no_comma", "detectable_format:title"],
        "kwargs": [{}, {"unused": None}],
    }
    each, every = (grader_of({"type": "instructions", "counts": counts}) for counts in ("each", "all"))
    assert each.grade(Sample("No title"), row).score == 0.5
    assert each.grade(Sample("No title"), row).parts == {"punctuation:no_comma": 1, "detectable_format:title": 0}
    assert every.grade(Sample("No title"), row).score == 0
    assert every.grade(Sample("<<Title>>"), row).score == 1
    assert "no list" in str(each.grade(Sample("text"), {}).fault)
    assert "entry for each" in str(each.grade(Sample("text"), {**row, "kwargs": [{}]}).fault)


def test_the_loose_reading_forgives_a_line_of_politeness_and_asterisks() -> None:
    assert "body" in variants("Sure, here:\nbody\nHope it helps")
    row = {"instruction_id_list": ["punctuation:no_comma"]}
    assert grader_of({"type": "instructions"}).grade(Sample("Sure, here:\nbody"), row).score == 0
    assert grader_of({"type": "instructions", "loose": True}).grade(Sample("Sure, here:\nbody"), row).score == 1


def test_every_instruction_of_the_papers_own_rows_can_be_checked(shared_data: Path) -> None:
    lines = (shared_data / "ifeval" / "input_data.jsonl").read_text("utf-8").splitlines()
    checked = untold = 0
    for line in lines:
        row = json.loads(line)
        for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            given = {key: value for key, value in arguments.items() if value is not None}
            try:
                follows(name, given, "A plain answer of a few words. It has no marks at all.")
            except Unknown as error:
                if "cannot be told" not in str(error):
                    raise
                # languages without a script or words of their own here
                untold += 1
            checked += 1
    assert (checked, untold <= 6) == (834, True)
