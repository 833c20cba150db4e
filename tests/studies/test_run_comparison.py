"""Runs beside each other: settings that differ, curves, costs, and answers to the same rows."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from pages import HOSTILE, Page
from tiny_runs import begin, recipe_values, write_rows

from luthier import api
from luthier.cli.main import main
from luthier.errors import UsageError
from luthier.evaluation.forgetting.found import Forgetting
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import Comparison, Measure
from luthier.evaluation.run_report import write_evaluation
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.generation.settings import Sampling
from luthier.objectives import SFT
from luthier.studies.run_comparison import compare_runs, write_curves, write_report
from luthier.types import Origin


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Three runs: `a` and `b` differ in rank and rate, `c` learned from texts."""
    desk = tmp_path_factory.mktemp("desk")
    held_out = str(write_rows(desk / "held-out.jsonl", 12, start=40))
    rows = write_rows(desk / "rows.jsonl", 12)
    for name, rank, rate in (("a", 2, 0.01), ("b", 4, 1e-6)):
        changes = {
            "training": {"peak_lr": rate, "steps": 24},
            "method": {"rank": rank},
            "data": {"validation": held_out},
        }
        begin(recipe_values(tiny_model, rows, **changes), desk / name)
    texts = desk / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"A lamp stands on chair {n}."}) + "\n" for n in range(20)))
    begin(recipe_values(tiny_model, texts, objective={"kind": "clm"}, training={"steps": 2}), desk / "c")
    return desk


def test_only_what_differs_is_told(desk: Path) -> None:
    compared = compare_runs([desk / "a", desk / "b"])
    assert dict(compared.differences) == {"method.rank": (2, 4), "training.peak_lr": (0.01, 1e-6)}
    assert compare_runs([desk / "a", desk / "a"]).differences == []


def test_numbers_and_curves_are_those_of_the_runs(desk: Path, tmp_path: Path) -> None:
    compared = compare_runs([desk / "a", desk / "b", desk / "c"])
    head, *rows = compared.as_table()
    assert [row[:3] for row in rows] == [["a", "finished", "24"], ["b", "finished", "24"], ["c", "finished", "2"]]
    lines = [json.loads(line) for line in (desk / "a" / "metrics.jsonl").read_text().splitlines()]
    last = [line["loss"] for line in lines][-2:]
    assert rows[0][head.index("training loss")] == f"{sum(last) / 2:.3f}"
    document = compared.as_json()
    assert document["runs"][0]["validation_loss"][-1] == [24, lines[-1]["validation_loss"]]
    write_curves(compared, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_run_that_learned_is_better_on_the_same_rows(desk: Path) -> None:
    evaluation = api.compare([desk / "b", desk / "a"], sampling=Sampling(max_new_tokens=4))
    assert evaluation.candidates == (str(desk / "b"), str(desk / "a"))
    loss = evaluation.measures[0]
    assert loss.verdict(1) == "better"
    alone = api.evaluate(desk / "a", sampling=Sampling(max_new_tokens=4))
    assert loss.estimates[1].value == pytest.approx(alone.measures[0].estimates[1].value, rel=1e-5)
    same = api.compare([desk / "a", desk / "a"], limit=10, sampling=Sampling(max_new_tokens=4))
    assert same.measures[0].comparisons[0].difference.value == 0
    assert any("first 10 of 12" in note for note in same.notes)


def test_runs_that_cannot_be_compared_are_refused(desk: Path) -> None:
    with pytest.raises(UsageError, match="One run alone"):
        compare_runs([desk / "a"])
    with pytest.raises(UsageError, match="did not learn to answer"):
        api.compare([desk / "c", desk / "a"])


def test_the_command_tells_all_and_draws(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", str(desk / "a"), str(desk / "b"), "--plot", str(tmp_path / "c.png")]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "method.rank" in text
    assert (tmp_path / "c.png").exists()
    assert main([*words, "--answers", "--limit", "10", "--max-new-tokens", "4", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["differences"]["method.rank"] == [2, 4]
    assert document["evaluation"]["rows"] == 10


def test_the_page_holds_differences_curves_measures_and_samples_side_by_side(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(desk / "a"), str(desk / "b"), "--report", str(tmp_path / "two.html")]
    assert main([*words, "--limit", "3", "--max-new-tokens", "4", "--answers"]) == 0
    evaluation = capsys.readouterr().out
    page = Page((tmp_path / "two.html").read_text())
    assert {"method.rank", "2", "4", "training.peak_lr", "ROUGE-L", "held-out loss"} <= set(page.text)
    assert page.tags.count("dl") == 3
    assert (
        page.text.count(str(desk / "a")) == page.text.count(str(desk / "b")) == 1 + 3
    )  # over the measures, at each answer
    assert any(sentence in evaluation for sentence in page.text if " on 3 rows: " in sentence)
    assert f"luthier {shlex.join([*words, '--limit', '3', '--max-new-tokens', '4', '--answers'])}" in page.text
    loaded = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert len(loaded) == 1
    assert loaded[0].startswith("data:image/png;base64,")
    assert "Against its own base" not in page.text


def test_hostile_answers_are_shown_on_the_page_and_not_obeyed(desk: Path, tmp_path: Path) -> None:
    row = Answered(Origin(HOSTILE[0], 1), HOSTILE[1], HOSTILE[2], (HOSTILE[3], HOSTILE[0]))
    found = Evaluation((HOSTILE[1], HOSTILE[2]), 1, (), HOSTILE, (row,))
    write_report(compare_runs([desk / "a", desk / "b"]), tmp_path / "page.html", found, HOSTILE[1])
    page = Page((tmp_path / "page.html").read_text())
    assert not {"script", "a", "iframe", "link"} & set(page.tags)
    assert (page.tags.count("img"), page.tags.count("style")) == (1, 1)
    assert all(any(hostile in piece for piece in page.text) for hostile in HOSTILE)


def test_what_each_run_knew_before_and_after_stands_beside_it_where_it_was_evaluated(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = tmp_path / "evaluated"
    shutil.copytree(desk / "a", evaluated)
    worse = Comparison(Estimate(0.5, 0.4, 0.6), 1e-9, 48, 0)
    text = Measure(
        "general text", False, 48, (Estimate(2, 1.9, 2.1), Estimate(2.5, 2.4, 2.6)), (worse,), 0.1, "likelihood"
    )
    found = Evaluation(("base", "tuned"), 1, (), (), (), subject="tuned", forgetting=Forgetting((text,)))
    write_evaluation(evaluated, found, SFT, "luthier evaluate")
    words = ["compare", str(evaluated), str(desk / "b"), "--report", str(tmp_path / "page.html")]
    assert main(words) == 0
    told = capsys.readouterr().out
    page = Page((tmp_path / "page.html").read_text())
    assert {"Against its own base", "what it knew", "forgot", "2.000 → 2.500 [2.400, 2.600]"} <= set(page.text)
    assert "2.000 → 2.500 [2.400, 2.600]" in told
    assert main([*words, "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert (runs[0]["verdict"], runs[1]["verdict"]) == ("forgot", None)
    assert runs[0]["forgetting"]["verdicts"] == {"tuned": "forgot"}


def test_the_command_measures_answers_and_shows_as_many_as_asked(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.py").write_text("def metric(row, answer):\n    return len(answer)\n")
    measures = ["--metric", "chrf", "--metric", str(tmp_path / "long.py")]
    words = ["compare", str(desk / "a"), str(desk / "b"), "--limit", "4", "--max-new-tokens", "4", *measures]
    assert main([*words, "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)["evaluation"]
    names = [measure["name"] for measure in evaluation["measures"]]
    assert {"chrf", "long"} <= set(names)
    assert main([*words, "--show", "1"]) == 0
    told = capsys.readouterr().out
    assert "chrf" in told
    assert told.count("reference:") == 1
    assert main([*words, "--metric", "chaff"]) == 2
    assert "chrf" in capsys.readouterr().err
