"""Each kind of fault, planted in a clean set, is found at its line and field; the clean set has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_sets import LINE, SETS, checked, rows_of

from luthier.data.checks.checking import Checked, check_data
from luthier.data.checks.findings import MOST_KEPT, Finding, Notes


@pytest.mark.parametrize("name", SETS)
def test_a_clean_set_has_no_faults(name: str, tmp_path: Path):
    assert checked(tmp_path, rows_of(name)).findings == ()


# ── a text with something wrong in it ───────────────────────────────────────────────────────────────────────────────


def in_text(change: Callable[[str], str], name: str = "answers", *path: str | int) -> Any:
    """Plants by changing one text of a row."""
    return name, path or ("completion",), change


def ends(text: str) -> Callable[[str], str]:
    return lambda before: before + " " + text


def halved(text: str) -> str:
    return text[: text.index(" near ")] + " and the"


TEXTS: list[Any] = [
    ("mojibake", in_text(ends("The cafÃ© is open."))),
    ("mojibake", in_text(ends("Itâ€™s open."))),
    ("mojibake", in_text(ends("ÐŸÑ€Ð¸Ð²ÐµÑ‚ to you."))),
    ("replacement-character", in_text(ends("The caf\ufffd is open."))),
    ("control-character", in_text(lambda text: text.replace(" ", " \x07", 1))),
    ("control-character", in_text(lambda text: text.replace(" ", " \x00", 1))),
    ("lone-surrogate", in_text(ends("Hello \ud83d."))),
    ("byte-order-mark", in_text(lambda text: "\ufeff" + text)),
    ("invisible-character", in_text(lambda text: text.replace(" ", "\u200b ", 1))),
    ("invisible-character", in_text(lambda text: text.replace("near", "ne\u00adar", 1))),
    ("unusual-space", in_text(lambda text: text.replace(" ", "\u00a0", 1))),
    ("html-entity", in_text(ends("Tom &amp; Ann came."))),
    ("html-entity", in_text(ends("It&#39;s here."))),
    ("html-tag", in_text(ends("<br>It is here."))),
    ("escaped-text", in_text(ends("The caf\\u00e9 is open."))),
    ("mixed-alphabets", in_text(lambda text: text.replace("near", "ne\u0430r", 1))),
    ("template-marker", in_text(ends("<|im_end|>"))),
    ("template-marker", in_text(lambda text: "[INST] " + text)),
    ("template-marker", in_text(lambda text: text + "\n\n### Human: And then.")),
    ("unfilled-placeholder", in_text(ends("Dear {customer_name}, thank you."))),
    ("unfilled-placeholder", in_text(ends("Call <NAME> today."))),
    ("unfilled-placeholder", in_text(ends("Yours, [Your Name]"))),
    ("null-word", in_text(lambda text: "NaN")),
    ("secret", in_text(ends("Use AKIA2OGYBAH6STMMNXNW for it."))),
    ("secret", in_text(ends("Use sk-proj-9fJ2kLmQ8xTz4WvB7nRc1YpD for it."))),
    ("secret", in_text(ends("Use ghp_k3JdL9sQwXzT7vBn2MfR5yPcH8gA1uE6oZ4i for it."))),
    ("secret", in_text(ends("See postgres://anna:Tr0ub4dor@db.acme.io/shop for it."))),
    ("secret", in_text(ends("-----BEGIN RSA PRIVATE KEY-----"))),
    ("secret", in_text(ends("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI5OTgxIn0.q8Zr3LxTnW2vKp"))),
    ("password", in_text(ends("The password is Sommer#2019x here."))),
    ("email-address", in_text(ends("Write to maria.keller@posteo.de soon."))),
    ("phone-number", in_text(ends("Call +49 30 901820 74 soon."))),
    ("phone-number", in_text(ends("Call (415) 867-3309 soon."))),
    ("bank-account", in_text(ends("Pay to DE89 3704 0044 0532 0130 00 soon."))),
    ("payment-card", in_text(ends("Pay with 4539 1488 0343 6467 soon."))),
    ("identity-number", in_text(ends("His number is 536-22-8714 there."))),
    ("identity-number", in_text(ends("O CPF dele: 529.982.247-25 agora."))),
    ("ip-address", in_text(ends("Log in at 84.17.46.203 soon."))),
    ("empty-text", in_text(lambda text: "")),
    ("empty-text", in_text(lambda text: "  \n ")),
    ("empty-answer", in_text(lambda text: "...")),
    ("cut-text", in_text(halved)),
    ("cut-text", in_text(lambda text: text[: text.index(" near ") + 4])),
    ("unclosed-fence", in_text(lambda text: text + "\n```python\nprint(1)")),
    ("unclosed-bracket", in_text(ends('It gives {"a": [1, 2].'))),
    ("refusal", in_text(lambda text: "As an AI language model, I do not have opinions.")),
    ("refusal", in_text(lambda text: "I'm sorry, but I can't assist with that.")),
    ("repetition", in_text(lambda text: text + " and so on and so on" * 12 + ".")),
    ("repetition", in_text(lambda text: " ".join([text.partition(". ")[0] + "."] * 5))),
    ("other-script", in_text(lambda text: "Мы чиним лампу и стол около Осло и делаем это вместе.")),
    (
        "other-language",
        in_text(
            lambda text: "Wir reparieren die Lampe und den Tisch, und das machen wir mit der Familie nach der Arbeit."
        ),
    ),
    ("far-longer", in_text(lambda text: text * 40)),
    ("stray-space", in_text(lambda text: "  " + text)),
    ("label-variant", in_text(lambda label: label.title(), "labelled", "label")),
    ("label-variant", in_text(lambda label: label + " ", "labelled", "label")),
    ("label-variant", in_text(lambda label: label[:-2] + label[-1], "labelled", "label")),
    ("unknown-label", in_text(lambda label: "weather", "labelled", "label")),
    ("unknown-role", in_text(lambda role: role.upper(), "chats", "messages", 1, "role")),
    ("unknown-role", in_text(lambda role: "asistant", "chats", "messages", 1, "role")),
    ("empty-turn", in_text(lambda text: "", "chats", "messages", 1, "content")),
    ("broken-json", in_text(lambda text: text[:-4], "calls", "tools")),
    ("broken-call", in_text(lambda text: text[:-4], "calls", "conversations", 1, "value")),
    ("unknown-tool", in_text(lambda text: text.replace("weather", "tides"), "calls", "conversations", 1, "value")),
    ("wrong-arguments", in_text(lambda text: text.replace("city", "town"), "calls", "conversations", 1, "value")),
    ("unknown-label", in_text(lambda tag: "B-XYZ", "tagged", "ner_tags", 2)),
]


def field_name(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def changed(value: Any, path: tuple[str | int, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], change)
    return copy


@pytest.mark.parametrize(("kind", "plant"), TEXTS, ids=[f"{kind}-{number}" for number, (kind, _) in enumerate(TEXTS)])
def test_what_is_wrong_in_a_text_is_found_at_its_line_and_field(kind: str, plant: Any, tmp_path: Path):
    name, path, change = plant
    rows = rows_of(name)
    rows[LINE - 1] = changed(rows[LINE - 1], path, change)
    findings = checked(tmp_path, rows).findings
    assert (kind, LINE, field_name(path)) in [(one.kind, one.line, one.field) for one in findings]
    assert {one.line for one in findings} == {LINE}
    assert all(one.found and one.mend for one in findings)


# ── a row that is wrong ─────────────────────────────────────────────────────────────────────────────────────────────


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {other: value for other, value in row.items() if other != key}


def having(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {**row, **values}


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["completion"], "completion": row["prompt"]}


ROWS: list[Any] = [
    ("missing-field", "answers", without("completion"), "completion"),
    ("null-value", "answers", having(completion=None), "completion"),
    ("wrong-type", "answers", having(completion=42), "completion"),
    ("wrong-type", "scored", having(score="good"), "score"),
    ("out-of-range", "scored", having(score=47.0), "score"),
    ("out-of-range", "scored", having(score=-3.0), "score"),
    ("wrong-type", "scored", having(score=float("nan")), "score"),
    ("answer-is-prompt", "answers", lambda row: {**row, "completion": row["prompt"]}, "completion"),
    ("swapped-columns", "answers", swapped, "completion"),
    ("swapped-columns", "labelled", lambda row: {"text": row["label"], "label": row["text"]}, "label"),
    ("same-answers", "preferences", lambda row: {**row, "rejected": row["chosen"]}, "rejected"),
    ("wrong-offset", "spans", lambda row: {**row, "start_offset": row["start_offset"] + 5}, "start_offset"),
    ("wrong-offset", "spans", lambda row: {**row, "end_offset": row["end_offset"] + 5}, "end_offset"),
    (
        "wrong-offset",
        "extracts",
        lambda row: {**row, "answers": {**row["answers"], "answer_start": [3]}},
        "answers.answer_start[0]",
    ),
    ("wrong-length", "tagged", lambda row: {**row, "ner_tags": row["ner_tags"][:-1]}, "ner_tags"),
    ("role-order", "chats", lambda row: {"messages": row["messages"][:-1]}, "messages[2].role"),
    ("role-order", "chats", lambda row: {"messages": row["messages"][1:]}, "messages[0].role"),
    (
        "role-order",
        "chats",
        lambda row: {"messages": [row["messages"][0], *row["messages"][2:]]},
        "messages[1].role",
    ),
]


@pytest.mark.parametrize(
    ("kind", "name", "plant", "place"), ROWS, ids=[f"{kind}-{number}" for number, (kind, *_) in enumerate(ROWS)]
)
def test_a_row_that_is_wrong_is_found_at_its_line_and_field(
    kind: str, name: str, plant: Callable[[dict[str, Any]], dict[str, Any]], place: str, tmp_path: Path
):
    rows = rows_of(name)
    rows[LINE - 1] = plant(rows[LINE - 1])
    findings = checked(tmp_path, rows).findings
    assert (kind, LINE, place) in [(one.kind, one.line, one.field) for one in findings]
    assert {one.line for one in findings} == {LINE}


# ── rows that come twice ────────────────────────────────────────────────────────────────────────────────────────────


def kinds_at(result: Checked, line: int, file: str = "rows.jsonl") -> set[str]:
    return {one.kind for one in result.findings if one.line == line and one.file.endswith(file)}


def test_a_copy_is_found_where_it_comes_again_also_under_another_number(tmp_path: Path):
    rows = [{"id": number, **row} for number, row in enumerate(rows_of("answers"))]
    rows.append({**rows[4], "id": 999})
    result = checked(tmp_path, rows)
    assert [(one.kind, one.line) for one in result.findings] == [("exact-duplicate", 201)]
    assert "line 5" in result.findings[0].found


@pytest.mark.parametrize("change", [str.upper, lambda text: text.replace(" and ", " & ", 1), lambda text: text + "!!"])
def test_a_near_copy_is_found(change: Callable[[str], str], tmp_path: Path):
    rows = rows_of("answers")
    rows.append({**rows[4], "completion": change(rows[4]["completion"])})
    assert "near-duplicate" in kinds_at(checked(tmp_path, rows), 201)


def test_another_label_for_the_same_text_is_found_at_both_rows(tmp_path: Path):
    rows = rows_of("labelled")
    rows.append({**rows[4], "label": "delivery"})
    result = checked(tmp_path, rows)
    assert rows[4]["label"] != "delivery"
    assert [(one.kind, one.line, one.field) for one in result.findings] == [
        ("contradictory-label", 5, "label"),
        ("contradictory-label", 241, "label"),
    ]


def test_another_answer_is_a_contradiction_unless_questions_come_again_by_design(tmp_path: Path):
    rows = rows_of("answers")
    rows.append({**rows[4], "completion": rows[9]["completion"]})
    assert kinds_at(checked(tmp_path, rows), 201) == {"contradictory-answer"}
    several = [{**row, "completion": other["completion"]} for row, other in zip(rows, rows[50:150], strict=False)]
    assert checked(tmp_path, rows[:100] + several).findings == ()


def test_a_leak_is_told_in_both_files(tmp_path: Path):
    rows = rows_of("answers")
    held_out = [*rows[150:], {**rows[4], "completion": rows[9]["completion"]}]
    result = checked(tmp_path, rows[:150], held_out)
    assert "leak" in kinds_at(result, 5)
    assert "leak" in kinds_at(result, 51, "held_out.jsonl")
    assert (result.num_rows, result.num_held_out) == (150, 51)


def test_a_near_leak_is_told_in_both_files(tmp_path: Path):
    rows = rows_of("answers")
    near = {
        "prompt": rows[4]["prompt"].replace("?", " ?!"),
        "completion": rows[4]["completion"].replace("We ", "They ", 1),
    }
    result = checked(tmp_path, rows[:150], [*rows[150:], near])
    assert kinds_at(result, 5) & {"leak", "near-leak"}
    assert kinds_at(result, 51, "held_out.jsonl") & {"leak", "near-leak"}


def test_texts_that_all_end_at_one_length_were_cut(tmp_path: Path):
    rows = rows_of("answers")
    for number in (10, 20, 30, 40):
        rows[number]["completion"] = (rows[number]["completion"] * 3)[:311].rstrip(". ").ljust(311, "x")
    found = [one.line for one in checked(tmp_path, rows).findings if one.kind == "length-limit"]
    assert found == [11, 21, 31, 41]


# ── what is too common to be told one by one ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("many", [2, 30])
def test_faults_are_told_one_by_one_while_few_have_them_and_else_in_one_word(many: int, tmp_path: Path):
    rows = rows_of("answers")
    for row in rows[10 : 10 + many]:
        row["completion"] += " Yours, [Your Name]"
    result = checked(tmp_path, rows)
    if many == 2:
        assert [(one.kind, one.line) for one in result.findings] == [("unfilled-placeholder", n) for n in (11, 12)]
        assert result.common == ()
        return
    assert result.findings == ()
    (word,) = result.common
    assert (word.kind, word.number, word.of, word.example.line) == ("unfilled-placeholder", 30, 200, 11)
    assert "30 of 200" in word.said
    assert "[Your Name]" in word.said
    assert "\n" not in word.said


def test_the_word_counts_what_was_not_kept_and_all_sorts_of_peers():
    notes = Notes(num_rows=100_000)
    for line in range(MOST_KEPT + 5):
        notes.suspect("text", Finding("cut-text", "error", "rows", line, "text", "cut.", "Mend it."), 0.01)
    notes.suspect("title", Finding("cut-text", "error", "rows", 1, "title", "cut.", "Mend it."), 0.01)
    for line in range(3):
        notes.suspect("body", Finding("cut-text", "error", "rows", line, "body", "cut.", "Mend it."), 0.01)
    notes.texts.update({"text": 90_000, "title": 50, "body": 70})
    findings, (word,) = notes.settled()
    assert [finding.field for finding in findings] == ["title"]
    assert (word.number, word.of) == (MOST_KEPT + 5 + 3, 90_000 + 70)


# ── files that are not whole ────────────────────────────────────────────────────────────────────────────────────────


def test_lines_that_are_no_rows_are_told_and_the_others_are_checked(tmp_path: Path):
    lines = [json.dumps(row).encode() for row in rows_of("answers")[:60]]
    lines[9] = lines[9][:-20]
    lines[19] = b"[1, 2]"
    lines[29] = lines[29].replace(b"near", b"n\xe9ar", 1)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    result = check_data(str(path), None, lambda text: None)
    found = [(one.kind, one.line, one.field) for one in result.findings]
    assert found == [("broken-line", 10, None), ("broken-line", 20, None), ("not-utf8", 30, "completion")]
    assert result.num_rows == 58


def test_a_table_with_a_row_of_other_cells_is_read_on(tmp_path: Path):
    lines = [f'"{row["text"]}",{row["label"]}' for row in rows_of("labelled")]
    lines[9] += ",more"
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label", *lines]))
    result = check_data(str(path), None, lambda text: None)
    assert [(one.kind, one.line) for one in result.findings] == [("broken-line", 11)]
    assert result.num_rows == 239


def test_a_text_beside_a_wrong_one_is_not_told(tmp_path: Path):
    """What is legitimate: joiners in emoji, French spacing, a code fence that is closed, example addresses."""
    rows = rows_of("answers")
    for number, text in enumerate(
        (
            "The family 👨\u200d👩\u200d👧 is here.",
            "C'est vrai\u00a0!",
            "Run it:\n```\nf(x) {\n```",
            "Write to jane@example.com or call 555-555-5555.",
            "The version is 1.2.3.4 of it.",
            "The naïve café in São Paulo was “open”.",
            "The order 4539 1488 0343 6468 is late.",
            "It is no IBAN: DE88 3704 0044 0532 0130 00.",
        )
    ):
        rows[number]["completion"] += f" {text}"
    assert checked(tmp_path, rows).findings == ()
