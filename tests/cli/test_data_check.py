"""`luthier check` on files of rows: exit codes, warnings, mended files, the page, and what is said without a model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from nouns import NOUNS

import luthier.prepared
from luthier.cli.main import main
from luthier.errors import DataError, GateRefusal, LuthierError, NetworkError, RecipeError


def write(path: Path, *changes: tuple[int, str]) -> None:
    """Sixty rows; text is added to some answers."""
    random_ = random.Random(5)
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"Where is the {' '.join(random_.choices(NOUNS, k=9))}?",
            "completion": f"It is {random_.choices(NOUNS, k=9)}.",
        }
        for _ in range(60)
    ]
    for line, text in changes:
        rows[line - 1]["completion"] += text
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True)
def no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, and no model within reach."""
    monkeypatch.chdir(tmp_path)

    def unreachable(*_: Any) -> Any:
        raise NetworkError("The hub could not be reached.", "Connect to the network.")

    monkeypatch.setattr(luthier.prepared, "check_recipe", unreachable)


def document_of(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    code = main(["check", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_sound_rows_end_well_and_say_that_tokens_were_not_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "rows.jsonl")
    code, document = document_of(capsys, "rows.jsonl")
    assert (code, document["ok"], document["findings"], document["gives"]) == (0, True, [], "text")
    assert document["gate"]["error"]["kind"] == "NetworkError"
    assert main(["check", "rows.jsonl"]) == 0
    assert "Tokens were not looked at: The hub could not be reached." in capsys.readouterr().out


def test_an_error_ends_with_3_and_a_warning_only_if_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "warned.jsonl", (7, " Write to maria.keller@posteo.de."))
    write(tmp_path / "wrong.jsonl", (7, " The cafÃ© is open."))
    assert main(["check", "warned.jsonl"]) == 0
    assert "warned.jsonl, line 7, field 'completion': email-address" in capsys.readouterr().err
    assert main(["check", "warned.jsonl", "--strict"]) == 3
    assert main(["check", "wrong.jsonl"]) == 3


def test_fix_and_report_write_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "rows.jsonl", (7, " The cafÃ© is open."), (9, " <|im_end|>"))
    code, document = document_of(capsys, "rows.jsonl", "--fix", "out.jsonl", "--report", "page", "--drop-faulty")
    assert code == 3
    assert document["fixed"] == {"rows": 59, "mended": {"mojibake": 1}, "left_out": {"template-marker": 1}, "kept": {}}
    assert document["counts"] == {"mojibake": 1, "template-marker": 1}
    assert (tmp_path / "page" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "| mojibake | 1 |" in (tmp_path / "page" / "report.md").read_text()
    assert main(["check", "out.jsonl"]) == 0


def test_of_near_copies_it_is_said_that_the_automatic_split_may_part_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    lines.append(lines[3].replace("Where is the", "Where was the"))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["check", "rows.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "near-duplicate" in said
    assert "data.validation: auto never holds some out and trains on others" in said
    assert main(["check", "rows.jsonl", "--set", "data.validation=none"]) == 0
    assert "data.validation: auto" not in capsys.readouterr().out


def test_what_many_rows_have_is_told_once_and_is_no_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "rows.jsonl", *((line, " Yours, [Your Name]") for line in range(3, 40)))
    code, document = document_of(capsys, "rows.jsonl", "--strict", "--report", "page")
    assert (code, document["ok"], document["findings"]) == (0, True, [])
    (word,) = document["notes"]
    found = (word["kind"], word["number"], word["of"], Path(word["file"]).name, word["line"], word["field"])
    assert found == ("unfilled-placeholder", 37, 60, "rows.jsonl", 3, "completion")
    assert main(["check", "rows.jsonl"]) == 0
    assert capsys.readouterr().err.count(f"note: {word['said']}") == 1
    page = (tmp_path / "page" / "report.md").read_text()
    assert f"| unfilled-placeholder | 37 of 60 | {word['file']}, line 3, field 'completion' |" in page


def test_drop_faulty_alone_is_a_usage_error(tmp_path: Path):
    write(tmp_path / "rows.jsonl")
    assert main(["check", "rows.jsonl", "--drop-faulty"]) == 2


def test_a_validation_file_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "rows.jsonl")
    (tmp_path / "held.jsonl").write_text((tmp_path / "rows.jsonl").read_text().splitlines()[11] + "\n")
    code, document = document_of(capsys, "rows.jsonl", "--validation", "held.jsonl")
    assert (code, document["rows"], document["held_out_rows"]) == (3, 60, 1)
    assert {(each["kind"], Path(each["file"]).name, each["line"]) for each in document["findings"]} == {
        ("leak", "rows.jsonl", 12),
        ("leak", "held.jsonl", 1),
    }


def test_a_model_that_was_named_must_be_there(tmp_path: Path):
    write(tmp_path / "rows.jsonl")
    assert main(["check", "rows.jsonl", "--model", "some/model"]) == 7


def refusal_of(*, is_of_rows: bool) -> GateRefusal:
    refusal = GateRefusal("The row is wrong.", "Mend it.", file="rows.jsonl", line=3)
    refusal.is_of_rows = is_of_rows
    return refusal


@pytest.mark.parametrize(
    "error", [refusal_of(is_of_rows=False), DataError("It is wrong."), RecipeError("It is wrong.")]
)
def test_what_depends_on_a_model_that_nobody_named_is_told_and_does_not_count(
    error: LuthierError, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(luthier.prepared, "check_recipe", Mock(side_effect=error))
    write(tmp_path / "rows.jsonl")
    assert main(["check", "rows.jsonl"]) == 0
    said = capsys.readouterr().out
    assert "would be refused; it does not count" in said
    assert str(error) in said
    assert "not looked at" not in said
    code, document = document_of(capsys, "rows.jsonl")
    assert (code, document["ok"], document["gate"]["asked"]) == (0, True, False)
    assert main(["check", "rows.jsonl", "--set", "objective.kind=clm"]) == 3


def test_what_is_wrong_with_the_rows_themselves_counts_of_a_bare_file_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(luthier.prepared, "check_recipe", Mock(side_effect=refusal_of(is_of_rows=True)))
    write(tmp_path / "rows.jsonl")
    code, document = document_of(capsys, "rows.jsonl")
    assert (code, document["ok"], document["error"]["line"], document["gate"]["asked"]) == (3, False, 3, True)
    assert main(["check", "rows.jsonl"]) == 3
    assert "rows.jsonl, line 3: The row is wrong." in capsys.readouterr().err


def test_what_nothing_can_be_learned_from_ends_with_3_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"question_id": number, "turns": ["Hi"], "category": "x"} for number in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, document = document_of(capsys, "rows.jsonl")
    assert (code, document["ok"], document["refused"], document["form"]) == (3, False, True, None)
    assert "questions without answers, for evaluation" in document["reason"]
    assert document["error"]["mend"] in document["reason"]
    assert document["gate"] == {"ok": False, "asked": False}
    assert main(["check", "rows.jsonl"]) == 3
    said = capsys.readouterr()
    assert "nothing can be learned from them" in said.out
    assert said.err.count("questions without answers") == 1


def test_an_objective_that_is_set_says_what_the_rows_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Write a haiku about rain.", "lines": 3}\n' * 3)
    (tmp_path / "reward.py").write_text("def reward(prompts, answers, rows): return [0.0] * len(answers)\n")
    assert document_of(capsys, "rows.jsonl")[1]["refused"]
    rewards = ("--set", "objective.rewards=[{function: reward.py}]")
    _, document = document_of(capsys, "rows.jsonl", "--set", "objective.kind=rloo", *rewards)
    assert (document["refused"], document["form"], document["gives"]) == (False, "prompts", "prompts")
    row = {"sentence_A": "a", "sentence_B": "b", "relatedness_score": 3.5, "entailment_judgment": "NO"}
    (tmp_path / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 3)
    assert document_of(capsys, "pairs.jsonl")[1]["gives"] == "labels"
    assert document_of(capsys, "pairs.jsonl", "--set", "objective.kind=regression")[1]["gives"] == "scores"


def test_languages_and_the_length_of_tokens_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = ["The parcel is not here, and it was sent on Monday.", "今天的天气非常好，我们一起去公园散步吧。"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": texts[n % 2]}) + "\n" for n in range(4)))
    _, document = document_of(capsys, "rows.jsonl", "--report", "page")
    statistics = document["statistics"]
    assert statistics["languages"] == {"text": {"English": 2, "Han letters": 2}}
    assert statistics["tokens_are"] == "estimated"
    assert statistics["characters_of_token"] == pytest.approx((50 + 20) / (50 / 4 + 20), abs=0.1)
    page = (tmp_path / "page" / "report.md").read_text()
    assert "| text | Han letters | 2 | 50.0% |" in page
    assert "characters a token, as is usual for their scripts" in page
