"""Runs whose answers are measured by graders: what a grader sees, and the measures that come out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_runs import begin, recipe_values, write_rows

from luthier import api
from luthier.cli.main import main
from luthier.errors import DataError, UsageError
from luthier.evaluation.grading import grader_of
from luthier.generation.engine import Completed
from luthier.generation.settings import Sampling
from luthier.types import Message

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    held_out = str(write_rows(desk / "held-out.jsonl", 12, start=40))
    rows = write_rows(desk / "rows.jsonl", 12)
    begin(recipe_values(tiny_model, rows, data={"validation": held_out}, training={"steps": 2}), desk / "run")
    return desk / "run"


def test_graders_read_the_rows_columns_and_each_gives_a_measure(run: Path) -> None:
    always = grader_of(
        {
            "type": "string_check",
            "name": "always",
            "input": "{{ item.completion }}",
            "reference": "{{ item.reference }}",
        }
    )
    asked = grader_of(
        {
            "type": "string_check",
            "name": "asked",
            "input": "{{ item.prompt }}",
            "reference": "Where",
            "operation": "like",
        }
    )
    long = grader_of(
        {
            "type": "python",
            "name": "letters",
            "source": "def grade(sample, item):\n    return len(sample['output_text'])",
        }
    )
    evaluation = api.evaluate(run, sampling=SHORT, graders=[always, asked, long])
    measures = {measure.name: measure for measure in evaluation.measures}
    assert [measures[name].estimates[1].value for name in ("always", "asked")] == [1, 1]
    expected = sum(len(answered.answers[1]) for answered in evaluation.answers) / len(evaluation.answers)
    assert measures["letters"].estimates[1].value == pytest.approx(expected)
    assert measures["letters"].comparisons[0].difference is not None


def test_rows_without_a_score_are_left_out_for_all_candidates_and_counted(run: Path) -> None:
    some = grader_of(
        {
            "type": "python",
            "name": "some",
            "source": "def grade(sample, item):\n    return 1 / ('lamp' in item['prompt'])",
        }
    )
    evaluation = api.evaluate(run, sampling=SHORT, graders=[some])
    num_rows = sum("lamp" in answered.asked for answered in evaluation.answers)
    assert evaluation.measures[-1].num_rows == num_rows
    assert f"{12 - num_rows} of 12 rows have no score (grade failed: ZeroDivisionError" in " ".join(evaluation.notes)
    with pytest.raises(DataError, match="no score for any row"):
        api.evaluate(run, sampling=SHORT, graders=[grader_of({"type": "number", "reference": "{{ item.nowhere }}"})])


def test_a_judge_is_a_model_and_must_be_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"type": "score_model", "name": "judged", "input": [{"content": "Rate: {{ sample.output_text }}"}]}
    grader = grader_of({**values, "range": [0, 10]})
    with pytest.raises(UsageError, match="asks a model"):
        api.evaluate(run, sampling=SHORT, graders=[grader])
    asked: list[str] = []

    class Judge:
        """Gives every answer a 7."""

        def complete(self, chats: Sequence[Sequence[Message]], sampling: Sampling) -> list[Completed]:
            asked.extend(chat[-1].content for chat in chats)
            return [Completed((), "Fine.\n7", "stop")] * len(chats)

    monkeypatch.setattr(api, "load_any_text", lambda name, announce: Judge())
    evaluation = api.evaluate(run, sampling=SHORT, graders=[grader], judge="the judge")
    assert [estimate.value for estimate in evaluation.measures[-1].estimates] == [7, 7]
    answers = [text for index in (0, 1) for text in (answered.answers[index] for answered in evaluation.answers)]
    assert [text.partition("\n\nEnd with")[0] for text in asked] == [f"Rate: {answer}" for answer in answers]


def test_the_command_takes_graders_from_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "both.yaml").write_text(
        "- {type: length, name: brief, most: 3}\n- {kind: pattern, name: ends, pattern: '\\.$'}\n"
    )
    words = ["evaluate", str(run), "--max-new-tokens", "8", "--grader", str(tmp_path / "both.yaml"), "--json"]
    assert main(words) == 0
    names = [measure["name"] for measure in json.loads(capsys.readouterr().out)["measures"]]
    assert names[-2:] == ["brief", "ends"]
    (tmp_path / "again.json").write_text('{"type": "length", "name": "brief", "most": 9}')
    assert main([*words[:-1], "--grader", str(tmp_path / "again.json")]) == 2
    assert "two graders are called 'brief'" in capsys.readouterr().err.lower()
    (tmp_path / "none.yaml").write_text("just words")
    assert main([*words[:4], "--grader", str(tmp_path / "none.yaml")]) == 2
    assert "holds no grader" in capsys.readouterr().err
