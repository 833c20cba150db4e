"""Rules that could take what is right for a fault: each has a planted text, which is told, and a twin beside it, which is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_sets import LINE, Rows, checked, rows_of

from luthier.data.checks.checking import Checked, check_data
from luthier.data.checks.findings import Notes
from luthier.data.checks.form import ReadAs
from luthier.data.checks.mending import write_mended
from luthier.data.checks.options import options_in
from luthier.data.checks.source import Questions, stream_rows
from luthier.data.settings import RowTemplate, Wishes

# ── tags ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_inside_tag_after_no_entity_of_its_kind_is_told_unless_entities_begin_so(tmp_path: Path):
    rows = rows_of("tagged")
    for row in rows:  # a place and the word after it are one entity
        at = row["ner_tags"].index("B-LOC")
        row["ner_tags"][at + 1] = "I-LOC"
    alone = [*rows[:LINE], {**rows[LINE], "ner_tags": ["I-LOC", *rows[LINE]["ner_tags"][1:]]}, *rows[LINE + 1 :]]
    assert checked(tmp_path, rows).findings == ()
    (finding,) = checked(tmp_path, alone).findings
    assert (finding.kind, finding.line, finding.field) == ("unreadable-row", LINE + 1, "ner_tags[0]")
    assert "I-LOC goes on with no entity" in finding.found
    begun = [{**row, "ner_tags": [tag.replace("B-", "I-") for tag in row["ner_tags"]]} for row in alone]
    assert checked(tmp_path, begun).findings == ()


# ── texts ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ADDED = [
    ("repetition", "It was good" + "!" * 40, "It was good!!!"),
    ("repetition", "\n".join(["Paint it.", "Then dry it well.", "Then hang it up."] * 4), "Paint it. Dry it. Hang it up."),
    ("html-tag", "<script>window.layer = [];</script>", "The HTML tag is <script>."),
    ("html-tag", "[b]It is here.[/b]", "It is [here]."),
    ("html-tag", "<!-- begin -->", "It is <- here."),
    ("unusual-space", "It is\x85here.", "It is\there."),
    ("unusual-space", "It is\u2028here.", "It is – here."),
    ("unfilled-placeholder", "Yours, [COMPANY NAME].", "It rhymes as [ABAB] does."),
    ("unfilled-placeholder", "TODO: write this.", "It says // TODO: write this."),
    ("unfilled-placeholder", "It costs {} in all.", "The minor is A,{1} of it."),
    ("phone-number", "Call me at 415 867 3309 now.", "The call used 2024-04-01 as its day."),
    ("ip-address", "Log in at 84.17.46.203 soon.", "The range is 84.17.46.0/24 of it."),
    ("email-address", "Write to ann@wherever.org.", "Write to sales@mycompany.com."),
    ("unclosed-bracket", "It is here (and there.", "It begins with '(' and no more."),
    ("cut-text", "We repair the lamp and then we descri", 'As she said, "all is well" - Ann B. Lee'),
    ("cut-text", "We repair the lamp and then we mea", "So it went well today #sunny"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "planted", "twin"), ADDED, ids=[f"{one[0]}-{n}" for n, one in enumerate(ADDED)])
def test_a_planted_text_is_told_and_its_twin_is_not(kind: str, planted: str, twin: str, tmp_path: Path):
    assert (kind, LINE, "completion") in told(tmp_path, with_text(planted))
    assert told(tmp_path, with_text(twin)) == []


def with_text(text: str) -> Rows:
    rows = rows_of("answers")
    rows[LINE - 1]["completion"] += f" {text}"
    return rows


def told(folder: Path, rows: Rows) -> list[tuple[str, int | None, str | None]]:
    return places_of(checked(folder, rows))


def places_of(result: Checked) -> list[tuple[str, int | None, str | None]]:
    return [(one.kind, one.line, one.field) for one in result.findings]


def test_a_text_of_another_language_is_told_and_one_about_a_language_is_not(tmp_path: Path):
    foreign = "Keksimme eilen uuden tavan korjata vanhan lampun, eikä kukaan muu vielä osannut arvata sitä."
    rows = rows_of("answers")
    rows[LINE - 1]["completion"] = foreign
    assert ("other-language", LINE, "completion") in told(tmp_path, rows)
    rows[LINE - 1]["prompt"] = "How would you translate it for my friends from the north of the country, please?"
    assert told(tmp_path, rows) == []


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def asked_with_options() -> Rows:
    options = ("lamp", "table", "bridge")
    return [
        {
            "question": f"{row['prompt']}\nOptions:\n" + "\n".join(f"({sign}) {text}" for sign, text in zip("ABC", options, strict=True)),
            "answer": ("(A)", "(B)", "table", "(C)")[number % 4],
        }
        for number, row in enumerate(rows_of("answers"))
    ]  # fmt: skip


def test_an_answer_outside_the_options_is_told_and_an_option_written_otherwise_is_not(tmp_path: Path):
    rows = asked_with_options()
    assert told(tmp_path, rows) == []
    rows[LINE - 1]["answer"] = "(K)"
    assert ("not-an-option", LINE, "answer") in told(tmp_path, rows)
    rows[LINE - 1]["answer"] = "(C)"
    assert told(tmp_path, rows) == []


def test_options_are_letters_texts_and_texts_up_to_a_colon():
    text = 'Which?\nOptions:\n- yes\n\nWhich now?\nOptions:\n- Sentence A: "It is."\n- (B) No.'
    assert options_in(text) == ('sentence a: "it is', "sentence a", "b", "no")
    assert options_in("Which of these?\n- yes\n- no") == ()


def test_an_answer_that_echoes_the_turn_before_is_told_and_a_greeting_is_not(tmp_path: Path):
    rows = rows_of("chats")
    said = rows[LINE - 1]["messages"][2]["content"]
    rows[LINE - 1]["messages"][3]["content"] = said.upper()
    assert ("echoed-turn", LINE, "messages[3].content") in told(tmp_path, rows)
    rows[LINE - 1]["messages"][2]["content"] = rows[LINE - 1]["messages"][3]["content"] = "Hello!"
    assert told(tmp_path, rows) == []


def test_an_input_given_back_is_no_echo_but_an_instruction_given_back_is(tmp_path: Path):
    rows = [
        {"instruction": f"Correct this: number {n}.", "input": row["prompt"], "output": row["completion"]}
        for n, row in enumerate(rows_of("answers"))
    ]
    rows[LINE - 1]["output"] = rows[LINE - 1]["input"]
    assert "answer-is-prompt" not in {kind for kind, _, _ in told(tmp_path, rows)}
    rows[LINE - 1]["output"] = rows[LINE - 1]["instruction"]
    assert ("answer-is-prompt", LINE, "output") in told(tmp_path, rows)


@pytest.mark.parametrize(("side", "is_told"), [("chosen", True), ("rejected", False)])
def test_the_better_answer_must_not_refuse_and_the_worse_one_may(side: str, is_told: bool, tmp_path: Path):
    rows = rows_of("preferences")
    rows[LINE - 1][side] = "As an AI language model, I do not have opinions."
    assert (("refusal", LINE, side) in told(tmp_path, rows)) is is_told


def test_preferences_the_other_way_round_are_told_and_a_copy_is_only_a_copy(tmp_path: Path):
    rows = rows_of("preferences")
    one = rows[4]
    turned = [*rows, {**one, "chosen": one["rejected"], "rejected": one["chosen"]}]
    assert ("contradictory-label", len(turned), "chosen") in told(tmp_path, turned)
    assert told(tmp_path, [*rows, dict(one)]) == [("exact-duplicate", len(rows) + 1, None)]


def test_tools_that_are_called_must_be_described_and_a_talk_without_calls_needs_none(tmp_path: Path):
    rows = rows_of("calls")
    rows[LINE - 1]["tools"] = "[]"
    assert ("no-tools", LINE, "tools") in told(tmp_path, rows)
    turns = rows[LINE - 1]["conversations"]
    rows[LINE - 1]["conversations"] = [turns[0], turns[3]]
    assert "no-tools" not in {kind for kind, _, _ in told(tmp_path, rows)}


# ── numbers and places ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("score", "is_told"), [(5.4, True), (0.0, True), (5.0, False), (1.0, False)])
def test_a_scale_ends_where_many_rows_have_its_last_number(score: float, is_told: bool, tmp_path: Path):
    rows = rows_of("scored")
    for number in range(12):
        rows[number]["score"] = 1.0 + 4.0 * (number % 2)
    rows[LINE - 1]["score"] = score
    assert (("out-of-range", LINE, "score") in told(tmp_path, rows)) is is_told


def test_an_offset_is_told_also_in_a_set_where_many_values_are_written_otherwise(tmp_path: Path):
    rows = rows_of("spans")
    for row in rows[1::8]:
        row["value"] = row["value"].upper()
    assert told(tmp_path, rows) == []
    rows[LINE - 1]["start_offset"] += 4
    assert ("wrong-offset", LINE, "start_offset") in told(tmp_path, rows)


def test_the_plain_form_of_a_word_may_name_its_place(tmp_path: Path):
    rows = []
    for number, row in enumerate(rows_of("answers")):
        start = row["completion"].index("friends")
        word = "friend" if number % 4 == 0 else "friends"
        rows.append({"text": row["completion"], "word": word, "start": start, "end": start + 7})
    assert "wrong-offset" not in {kind for kind, _, _ in told(tmp_path, rows)}
    rows[LINE - 1]["end"] -= 2
    assert ("wrong-offset", LINE, "end") in told(tmp_path, rows)


# ── questions of articles ───────────────────────────────────────────────────────────────────────────────────────────


def articles() -> list[dict[str, Any]]:
    """Twenty articles of two paragraphs with three questions each."""
    rows = rows_of("extracts")

    def question(row: dict[str, Any], context: str, start: int) -> dict[str, Any]:
        answer = {"text": row["answers"]["text"][0], "answer_start": start + row["answers"]["answer_start"][0]}
        assert context[answer["answer_start"] :].startswith(answer["text"])
        return {"question": row["question"], "answers": [answer]}

    def paragraph(of: Rows) -> dict[str, Any]:
        context = "\n".join(row["context"] for row in of)
        starts = [context.index(row["context"]) for row in of]
        return {
            "context": context,
            "qas": [question(row, context, start) for row, start in zip(of, starts, strict=True)],
        }

    return [
        {"title": f"Article {at}", "paragraphs": [paragraph(rows[at : at + 3]), paragraph(rows[at + 3 : at + 6])]}
        for at in range(0, 120, 6)
    ]  # fmt: skip


def test_a_question_is_known_by_its_running_number_and_the_path_to_it(tmp_path: Path):
    made = articles()
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"version": "1", "data": made}))
    assert check_data(str(path), None, lambda text: None).findings == ()
    made[3]["paragraphs"][1]["qas"][2]["answers"][0]["answer_start"] += 1
    made[5]["paragraphs"][0]["context"] += " The cafÃ© is open."
    path.write_text(json.dumps({"version": "1", "data": made}))
    result = check_data(str(path), None, lambda text: None)
    assert places_of(result) == [
        ("wrong-offset", 24, "data[3].paragraphs[1].qas[2].answers[0].answer_start"),
        ("mojibake", 31, "data[5].paragraphs[0].context"),
    ]
    mended = write_mended(str(path), result, tmp_path / "out.jsonl", drop_faulty=False)
    assert (mended.num_written, dict(mended.mended)) == (20, {"mojibake": 1})
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written[5]["paragraphs"][0]["context"].endswith("The café is open.")


def test_an_article_of_a_file_of_lines_is_known_by_its_line(tmp_path: Path):
    made = articles()
    made[3]["paragraphs"][1]["qas"][2] = made[3]["paragraphs"][1]["qas"][0]
    path = tmp_path / "squad.jsonl"
    path.write_text("".join(json.dumps(article) + "\n" for article in made))
    (finding,) = check_data(str(path), None, lambda text: None).findings
    assert (finding.kind, finding.line, finding.field) == ("exact-duplicate", 4, "paragraphs[1].qas[2]")
    assert "line 4, paragraphs[1].qas[0]" in finding.found


def test_questions_about_one_text_are_no_near_copies_but_a_question_asked_twice_is(tmp_path: Path):
    path = tmp_path / "squad.jsonl"
    path.write_text("".join(json.dumps(article) + "\n" for article in articles()))
    rows = [dict(row.values) for row in Questions().among(stream_rows(str(path), lambda text: None, Notes()))]
    assert len(rows) == 120
    assert told(tmp_path, rows) == []
    again = {**rows[4], "question": rows[4]["question"].replace("?", " ?!")}
    assert ("near-duplicate", 121, None) in told(tmp_path, [*rows, again])


# ── what the recipe says of the columns ─────────────────────────────────────────────────────────────────────────────


def test_a_template_says_which_columns_ask_and_which_answer(tmp_path: Path):
    rows = [{"left": row["prompt"], "right": row["completion"]} for row in rows_of("answers")]
    rows[LINE - 1]["right"] = rows[LINE - 1]["left"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = RowTemplate(prompt="Q: {left}\n", completion="{right}")
    result = check_data(str(path), None, lambda text: None, read_as=ReadAs(wishes=Wishes(template=template)))
    assert (result.form, result.gives) == ("template", "text")
    assert ("answer-is-prompt", LINE, "right") in places_of(result)
    without = check_data(str(path), None, lambda text: None)
    assert "answer-is-prompt" not in {one.kind for one in without.findings}
