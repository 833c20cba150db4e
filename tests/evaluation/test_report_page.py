"""The page of a run: it loads nothing, shows hostile text as text, and puts what went wrong first."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pages import HOSTILE, Page

from luthier.evaluation.forgetting.found import Forgetting
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import Comparison, Measure
from luthier.evaluation.report import write_loss_plot
from luthier.evaluation.report_page import RunPage, samples_of, write_page
from luthier.evaluation.run_report import write_evaluation, write_run_report
from luthier.evaluation.safety.found import Safety
from luthier.evaluation.verdict import Answered, Details, Evaluation, RowScores, Table
from luthier.objectives import SFT
from luthier.types import Origin

METRICS = [
    {"step": step, "loss": 2.0 / step, "lr": 1e-4, "seconds": 1.0, "learned_tokens": 3, "real_tokens": 9}
    for step in (1, 2)
]


def answered(number: int, reference: str, *answers: str) -> Answered:
    return Answered(Origin("rows.jsonl", number), f"question {number}", reference, answers)


def evaluation(*rows: Answered, notes: tuple[str, ...] = ()) -> Evaluation:
    return Evaluation(("base", "tuned"), len(rows), (), notes, rows)


def page_of(folder: Path, found: Evaluation | None, text: str = "plain") -> Page:
    write_loss_plot(METRICS, folder / "loss.png")
    about = RunPage(text, {text: text}, f"seed: 1 # {text}", {"cpu": text}, (f"luthier train {text}",))
    write_page(folder / "report.html", about, METRICS, [folder / "loss.png"], found)
    return Page((folder / "report.html").read_text())


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    """An evaluation in which everything that is text is hostile."""
    monkeypatch.setattr(Evaluation, "sentences", (HOSTILE[0],))
    monkeypatch.setattr(Evaluation, "as_table", lambda self: [["measure", HOSTILE[1]], [HOSTILE[2], HOSTILE[3]]])
    monkeypatch.setattr(Evaluation, "tables", (Table(HOSTILE[3], [[HOSTILE[0]], [HOSTILE[1]]]),))
    rows = [
        Answered(Origin(text, 1), text, other, (text, text)) for text, other in zip(HOSTILE, HOSTILE[::-1], strict=True)
    ]
    return evaluation(*rows, notes=HOSTILE)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_not_obeyed(found: Evaluation, tmp_path: Path, text: str):
    sound = page_of(tmp_path / "sound", None)
    page = page_of(tmp_path, found, text)
    assert not {"script", "a", "iframe", "link", "object", "form"} & set(page.tags)
    assert page.tags.count("style") == sound.tags.count("style") == 1
    assert page.tags.count("img") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(any(hostile in piece for piece in page.text) for hostile in HOSTILE)


def test_the_page_loads_nothing_from_anywhere(found: Evaluation, tmp_path: Path):
    page = page_of(tmp_path, found, HOSTILE[0])
    loaded = [value for _, name, value in page.attributes if name in ("src", "href", "data", "action", "srcset")]
    assert len(loaded) == 1
    assert loaded[0].startswith("data:image/png;base64,")
    style = re.findall(r"<style>(.*?)</style>", (tmp_path / "report.html").read_text(), re.DOTALL)
    assert "url(" not in style[0]
    assert "@import" not in style[0]
    policy = next(value for tag, name, value in page.attributes if (tag, name) == ("meta", "content"))
    assert policy.startswith("default-src 'none'")


def test_failures_stand_first_and_the_farthest_from_the_reference_before_the_nearer():
    rows = [
        answered(1, "blue", "blue", "blue"),
        answered(2, "green", "red", "green"),
        answered(3, "a b c d", "x", "a b c e"),
        answered(4, "a b c d", "x", "y"),
        answered(5, "red", "red", "black"),
    ]
    samples = samples_of(evaluation(*rows))
    assert [sample.outcome for sample in samples] == ["lost", "wrong", "wrong", "gained", "right"]
    assert [sample.asked for sample in samples] == [f"question {number}" for number in (5, 4, 3, 2, 1)]


def test_failures_are_those_of_the_model_that_it_is_about():
    rows = [answered(1, "a", "a", "a", "x"), answered(2, "b", "b", "x", "b"), answered(3, "c", "x", "c", "x")]
    found = Evaluation(("base", "tuned", "other"), 3, (), (), tuple(rows), subject="tuned")
    assert [(sample.asked, sample.outcome) for sample in samples_of(found)] == [
        ("question 2", "lost"), ("question 3", "gained"), ("question 1", "right")
    ]  # fmt: skip
    assert samples_of(replace(found, subject=None))[0].asked == "question 1"


def test_failures_are_told_by_the_measure_that_was_asked_for(tmp_path: Path):
    rows = [answered(number, "a", "a", "a" if number % 2 else "b") for number in range(1, 8)]
    scores = RowScores("<taste>", ((7, 3), (3, 7), (5, 5), (9, 9), (None, None), (8, 2), (None, 4)))
    found = replace(evaluation(*rows), scores=scores)
    samples = samples_of(found)
    assert [(sample.asked[-1], sample.outcome, sample.scored) for sample in samples] == [
        ("6", "lost", "8 → 2"), ("1", "lost", "7 → 3"), ("7", "wrong", "none → 4"), ("3", "wrong", "5"),
        ("5", "unscored", "none"), ("2", "gained", "3 → 7"), ("4", "right", "9"),
    ]  # fmt: skip
    text = "".join(page_of(tmp_path, found).text)
    assert "<taste> fell: 2 · <taste> not at its highest: 2 · <taste> has no score: 1 · <taste> rose: 1" in text
    assert "<taste> fell · 8 → 2 · rows.jsonl, line 6" in text
    alone = replace(found, candidates=("tuned",), answers=(answered(1, "a", "a"),), scores=RowScores("f", ((0.9,),)))
    assert [sample.outcome for sample in samples_of(alone)] == ["wrong"], "the scale from 0 to 1 ends at 1"


def test_one_candidate_alone_is_right_or_wrong():
    alone = Evaluation(("tuned",), 2, (), (), (answered(1, "a", "a"), answered(2, "b", "a")))
    assert [sample.outcome for sample in samples_of(alone)] == ["wrong", "right"]


def test_many_answers_are_cut_and_the_page_says_so(tmp_path: Path):
    rows = [answered(number, "a", "a", "a") for number in range(100)]
    page = page_of(tmp_path, evaluation(*rows))
    assert page.tags.count("dl") == 60
    assert any("the first 60 of 100 are shown" in piece for piece in page.text)


# ── in a run's folder ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run leaves it."""
    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    (folder / "recipe.yaml").write_text("model: tiny\n")
    (folder / "environment.json").write_text('{"torch": "2.x"}')
    return folder


def test_a_finished_run_has_both_reports_with_the_command_to_repeat_it(run: Path):
    write_run_report(run, {"Model": "tiny"}, {}, SFT)
    page = Page((run / "report.html").read_text())
    assert "| Model | tiny |" in (run / "report.md").read_text()
    assert {"tiny", "2.x", "model: tiny\n"} <= set(page.text)
    assert f"luthier train '{run}/recipe.yaml' --out 'my run-again'" in page.text
    assert "Training loss 2.000 → 1.000 nats per learned token" in "".join(page.text)


def measured(name: str, change: float, *, margin: float = 0.02, likelihood: bool = False) -> Measure:
    """A measure that changed on all of 48 rows, and surely."""
    rises, falls = (48, 0) if change > 0 else (0, 48)
    sure = Comparison(Estimate(change, change - 0.01, change + 0.01), 1e-9, rises, falls)
    estimates = (Estimate(0.5, 0.4, 0.6), Estimate(0.5 + change, 0.4, 0.6))
    return Measure(name, not likelihood, 48, estimates, (sure,), margin, "likelihood" if likelihood else "answers")


@dataclass(frozen=True)
class Curves(Details):
    """Details of which the table alone is asked."""

    def tables(self) -> tuple[Table, ...]:
        return (Table("Best of n", [["n", "reward"], ["4", "0.75"]]),)

    def as_json(self) -> dict[str, object]:
        return {"n": 4}

    def write_picture(self, path: Path) -> None:
        raise AssertionError(path)


def test_an_evaluation_is_put_into_both_reports_beside_what_they_said(run: Path):
    write_run_report(run, {"Model": "tiny"}, {}, SFT)
    found = Evaluation(("base", "tuned"), 48, (measured("ROUGE-L", 0.3),), (), (answered(1, "a", "b", "a"),))
    write_evaluation(run, found, SFT, "luthier evaluate 'my run'")
    page = Page((run / "report.html").read_text())
    assert found.outcomes["tuned"].kind == "better"
    sentence = found.outcomes["tuned"].sentence
    assert {"tiny", sentence, "luthier evaluate 'my run'", "question 1"} <= set(page.text)
    report = (run / "report.md").read_text()
    assert sentence in report
    assert "| Model | tiny |" in report
    kept = json.loads((run / "evaluation.json").read_text())
    assert (kept["verdict"], kept["summary"], kept["command"]) == ("better", sentence, "luthier evaluate 'my run'")


def test_a_run_that_forgot_is_told_as_such_in_both_reports_with_all_that_was_found(run: Path):
    lost = Forgetting((measured("general text", 0.5, margin=0.1, likelihood=True),), ("The probe is in English.",))
    safety = Safety((measured("harmful requests refused", -0.5),), ("The probes are small.",))
    won = (measured("loss", -0.4, margin=0.01, likelihood=True), measured("ROUGE-L", 0.3))
    found = Evaluation(
        ("base", "tuned", "other"),
        48,
        tuple(with_other(each) for each in won),
        ("A note of the rows.",),
        (),
        Curves(),
        "tuned",
        Forgetting(tuple(with_other(part) for part in lost.parts), lost.notes),
        None,
        Safety(tuple(with_other(part) for part in safety.parts), safety.notes),
    )
    assert (found.outcomes["tuned"].kind, found.outcomes["other"].kind) == ("forgot", "unclear")
    write_evaluation(run, found, SFT, "luthier evaluate")
    text = "".join(Page((run / "report.html").read_text()).text)
    for report in (text, (run / "report.md").read_text()):
        assert "tuned forgot: general text 0.500 → 1.000" in report
        assert "tuned is better" not in report
        assert found.outcomes["other"].sentence in report
        assert "A note of the rows." in report
        assert "The probe is in English." in report
        assert "tuned is worse than base by harmful requests refused." in report
        assert "The probes are small." in report
        assert "Best of n" in report
        assert "0.75" in report


def with_other(measure: Measure) -> Measure:
    """The measure with a further candidate of which nothing is sure."""
    unsure = Comparison(Estimate(0.0, -0.5, 0.5), 0.5, 24, 24)
    estimates = (*measure.estimates, measure.estimates[0])
    return replace(measure, estimates=estimates, comparisons=(*measure.comparisons, unsure))
