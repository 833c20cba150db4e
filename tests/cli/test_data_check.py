"""`luthier check` on files of rows: exit codes, warnings, mended files, the page, and what is said without a model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from nouns import NOUNS

import luthier.prepared
from luthier.cli.main import main
from luthier.errors import NetworkError


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
