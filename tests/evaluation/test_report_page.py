"""The page of a run: it loads nothing, shows hostile text as text, and puts what went wrong first."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from luthier.evaluation.report import write_loss_plot
from luthier.evaluation.report_page import RunPage, samples_of, write_page
from luthier.evaluation.run_report import write_evaluation, write_run_report
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.objectives import SFT
from luthier.types import Origin

HOSTILE = (
    '</dd></dl><script src="https://evil.example/x.js">alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "<a href='javascript:alert(1)'>here</a> {{ 7 * 7 }} {% raw %}",
    "<style>@import url(https://evil.example/x.css)</style><!--",
)
METRICS = [
    {"step": step, "loss": 2.0 / step, "lr": 1e-4, "seconds": 1.0, "learned_tokens": 3, "real_tokens": 9}
    for step in (1, 2)
]


class Page(HTMLParser):
    """What a browser makes of a page: its elements, everything that they could load, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


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
    monkeypatch.setattr(Evaluation, "summary", HOSTILE[0])
    monkeypatch.setattr(Evaluation, "as_table", lambda self: [["measure", HOSTILE[1]], [HOSTILE[2], HOSTILE[3]]])
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


def test_one_candidate_alone_is_right_or_wrong():
    alone = Evaluation(("tuned",), 2, (), (), (answered(1, "a", "a"), answered(2, "b", "a")))
    assert [sample.outcome for sample in samples_of(alone)] == ["wrong", "right"]


def test_many_answers_are_cut_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Evaluation, "summary", "")
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


def test_an_evaluation_is_put_into_both_reports_beside_what_they_said(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Evaluation, "summary", "tuned is better.")
    monkeypatch.setattr(Evaluation, "as_json", lambda self: {"summary": "tuned is better."})
    write_run_report(run, {"Model": "tiny"}, {}, SFT)
    write_evaluation(run, evaluation(answered(1, "a", "b", "a")), SFT, "luthier evaluate 'my run'")
    page = Page((run / "report.html").read_text())
    assert {"tiny", "tuned is better.", "luthier evaluate 'my run'", "question 1"} <= set(page.text)
    report = (run / "report.md").read_text()
    assert "tuned is better." in report
    assert "| Model | tiny |" in report
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept == {"summary": "tuned is better.", "command": "luthier evaluate 'my run'"}
