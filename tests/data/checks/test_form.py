"""What the check takes rows for: what training takes them for, and where nothing can be learned from them, why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from form_rows import rows_of
from shared_sets import REFUSED, TABLE

import luthier.data.checks.checking as checking
from bench.check import read_as
from luthier.data.checks.checking import check_data, check_sources, recognised
from luthier.data.checks.form import ReadAs
from luthier.data.formats import Natural, to_records
from luthier.data.settings import DataSettings, DataSource
from luthier.errors import DataError
from luthier.types import Gives

PAGE = Path(__file__).parents[3] / "docs" / "check.md"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def silent(text: str) -> None:
    """Say nothing."""


def late_classes(count: int = 300) -> list[dict[str, Any]]:
    """Rows of which only those after the first 200 tell that intents are put into groups."""
    kinds = ["cancel order" if number < 200 else ("track order", "pay bill")[number % 2] for number in range(count)]
    groups = {"cancel order": "ORDER", "track order": "ORDER", "pay bill": "BILL"}
    return [
        {"utterance": f"Text {number}", "intent": kind, "category": groups[kind]} for number, kind in enumerate(kinds)
    ]


def test_what_only_later_rows_tell_is_told_as_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = late_classes()
    path = write(tmp_path / "rows.jsonl", rows)
    checked = check_data(path, None, silent)
    assert (checked.form, checked.reason) == ("classification", "intent is the class of utterance")
    assert to_records(rows_of(*rows), "auto", "labels").reason == checked.reason
    monkeypatch.setattr(checking, "ROWS_OF_FORM", 150)
    assert check_data(path, None, silent).refusal is not None


def test_rows_that_training_leaves_out_do_not_tell_the_form(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", late_classes())
    checked = check_sources(DataSettings(train=path, max_rows=200), None, silent, "labels")
    assert checked.refusal is not None
    assert checked.num_rows == 300


def test_each_row_is_held_to_the_form_however_late_it_is_and_by_whatever_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = late_classes(2_200)
    rows[2_100]["intent"] = ["x"]
    path = write(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr(checking, "ROWS_OF_FORM", 2_050)
    alone = check_data(path, None, silent, num_processes=1)
    assert ("wrong-type", 2_101) in {(each.kind, each.line) for each in alone.findings}
    monkeypatch.setattr(checking, "ROWS_FOR_PROCESSES", 1_000)
    assert check_data(path, None, silent) == alone


def test_what_cannot_be_learned_from_is_refused_in_the_words_of_training(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{"question_id": 1, "turns": ["Hi"], "category": "x"}] * 3)
    checked = check_data(path, None, silent)
    assert isinstance(checked.refusal, DataError)
    assert (checked.form, checked.gives) == (None, None)
    assert checked.reason.startswith("the rows cannot be learned from: they are questions without answers")
    assert checked.reason.endswith(checked.refusal.mend)
    assert checked.refusal.file == path


def test_a_file_of_broken_lines_alone_is_refused(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("{\n[\n")
    checked = check_data(str(tmp_path / "rows.jsonl"), None, silent)
    assert checked.reason == "no line of it is a row. Mend its lines."
    assert [finding.kind for finding in checked.findings] == ["broken-line", "broken-line"]


@pytest.mark.parametrize(
    ("takes", "form", "gives"),
    [(None, "classification", "labels"), ("labels", "classification", "labels"), ("scores", "scores", "scores")],
)
def test_an_objective_says_what_rows_of_several_readings_are(
    takes: Gives | None, form: str, gives: str, tmp_path: Path
):
    row = {"sentence_A": "a", "sentence_B": "b", "relatedness_score": 3.5, "entailment_judgment": "NO"}
    path = write(tmp_path / "rows.jsonl", [row] * 4)
    checked = check_sources(DataSettings(train=path), None, silent, takes)
    assert (checked.form, checked.gives) == (form, gives)


def test_prompts_are_rows_for_an_objective_that_takes_them_and_refused_without(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "Write a haiku about rain.", "lines": 3}] * 4)
    found = recognised(path, ReadAs(takes="prompts"))
    assert isinstance(found, Natural)
    assert found[:3] == ("prompts", "prompts", "prompt asks")
    alone = recognised(path)
    assert isinstance(alone, DataError)
    assert "objective.kind to grpo" in alone.mend


def test_of_several_sources_the_one_that_is_refused_is_named(tmp_path: Path):
    good = write(tmp_path / "good.jsonl", [{"prompt": "Hi", "completion": "Hello"}] * 3)
    bad = write(tmp_path / "bad.jsonl", [{"facts": "a", "says": "b", "more": "c"}] * 3)
    mixture = DataSettings(train=(DataSource(path=good), DataSource(path=bad)))
    checked = check_sources(mixture, None, silent, "text")
    assert checked.refusal is not None
    assert checked.refusal.file == bad
    assert checked.reason.startswith("the rows fit no form that sft learns from.")


# ── every shared set ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "form", "gives"), [line[:3] for line in TABLE], ids=[line[0] for line in TABLE])
def test_every_shared_set_is_taken_for_what_it_is(name: str, form: str, gives: str, shared_data: Path):
    found = recognised(str(shared_data / name))
    assert isinstance(found, Natural)
    assert (found.name, found.gives) == (form, gives)
    assert dict(page_table()).get(name, read_as(found.name, found.reason)) == read_as(found.name, found.reason)


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_every_shared_set_for_evaluation_is_refused_for_what_it_is(name: str, reason: str, shared_data: Path):
    found = recognised(str(shared_data / name))
    assert isinstance(found, DataError)
    assert reason in found.found
    assert dict(page_table())[name] == read_as(None, f"{found.found} {found.mend}")


def test_the_page_has_the_forms_and_refusals_of_all_shared_sets():
    told = {name: form for name, (form, _) in page_table() if form != "no rows"}
    expected = {name: form for name, form, *_ in TABLE if not name.endswith("classes.txt")}
    assert told == {**expected, **{name: "refused" for name, _ in REFUSED}}


def page_table() -> list[tuple[str, tuple[str, str]]]:
    """The files of the page's table, and what they are read as and why."""
    lines = PAGE.read_text("utf-8").partition("--table -->\n")[2].partition("\n<!-- end -->")[0].splitlines()
    cells = [line.replace("\\|", "\0").strip("|").split("|") for line in lines[2:]]
    return [(name.strip(), (form.strip(), why.strip().replace("\0", "\\|"))) for name, form, why, *_ in cells]
