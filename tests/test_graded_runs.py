"""Runs whose answers are measured by graders: what a grader sees, and the measures that come out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from fake_endpoint import completion, serving
from tiny_runs import begin, recipe_values, write_rows

from luthier import api
from luthier.cli.main import main
from luthier.errors import DataError, NotFound, UsageError
from luthier.evaluation.grading import grader_of
from luthier.evaluation.judged.endpoint import Endpoint
from luthier.evaluation.verdict import RowScores
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
    assert evaluation.scores == RowScores("always", ((1.0, 1.0),) * 12), "the first grader's are those of the rows"


def test_a_metric_that_is_always_there_is_not_measured_twice(run: Path) -> None:
    evaluation = api.evaluate(run, sampling=SHORT, limit=3, metrics=["chrf", "rouge-l", "exact-match", "rouge-1"])
    names = [measure.name for measure in evaluation.measures]
    assert names[-5:] == ["exact match", "token F1", "ROUGE-L", "chrf", "rouge-1"]
    assert evaluation.scores is not None
    assert evaluation.scores.name == "rouge-l"
    mean = sum(own or 0 for _, own in evaluation.scores.of_rows) / 3
    assert mean == pytest.approx(evaluation.measures[-3].estimates[1].value)


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


def test_a_judge_is_a_model_and_must_be_named(run: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"type": "score_model", "name": "judged", "input": [{"content": "Rate: {{ sample.output_text }}"}]}
    grader = grader_of({**values, "range": [0, 10]})
    with pytest.raises(UsageError, match="asks a model"):
        api.evaluate(run, sampling=SHORT, graders=[grader])
    with monkeypatch.context() as before_anything_is_answered:
        before_anything_is_answered.delattr(api, "evaluate_run")
        with pytest.raises(NotFound, match="no-such-judge"):
            api.evaluate(run, sampling=SHORT, graders=[grader], judge="./no-such-judge")
    asked: list[str] = []

    class Judge:
        """Gives every answer a 7."""

        renderer = SimpleNamespace(chat="a template")

        def complete(self, chats: Sequence[Sequence[Message]], sampling: Sampling) -> list[Completed]:
            asked.extend(chat[-1].content for chat in chats)
            return [Completed((), "Fine.\n7", "stop")] * len(chats)

    monkeypatch.setattr(api, "load_any_text", lambda name, announce: Judge())
    evaluation = api.evaluate(run, sampling=SHORT, graders=[grader], judge=str(tiny_model))
    assert [estimate.value for estimate in evaluation.measures[-1].estimates] == [7, 7]
    answers = [text for index in (0, 1) for text in (answered.answers[index] for answered in evaluation.answers)]
    assert [text.partition("\n\nEnd with")[0] for text in asked] == [f"Rate: {answer}" for answer in answers]


TASTE = {
    "type": "score_model", "name": "taste", "model": "small", "range": [1, 10],
    "input": [{"content": "Rate: {{ sample.output_text }}"}], "sampling_params": {"temperature": 0.5, "max_completions_tokens": 99},
}  # fmt: skip


def test_graders_ask_an_endpoint_for_the_model_that_each_names(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taste.json").write_text(json.dumps(TASTE))
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    words = ["evaluate", str(run), "--max-new-tokens", "4", "--limit", "3", "--no-forgetting", "--json"]
    words += ["--grader", str(tmp_path / "taste.json"), "--judge-key-env", "JUDGE_KEY"]
    with serving(lambda body: completion("Fine.\n7")) as asked:
        assert main([*words, "--judge-url", asked.url]) == 0
        (taste,) = (each for each in json.loads(capsys.readouterr().out)["measures"] if each["name"] == "taste")
        assert [estimate["value"] for estimate in taste["estimates"].values()] == [7, 7]
        assert len(asked.bodies) == 6
        for body, headers in zip(asked.bodies, asked.headers, strict=True):
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("small", 0.5, 99)
            assert headers["Authorization"] == "Bearer sk-secret"
        assert main([*words, "--judge-url", asked.url, "--judge-model", "big"]) == 0
        assert {body["model"] for body in asked.bodies[6:]} == {"big"}
        assert "The grader 'taste' names the model small: big is asked instead." in capsys.readouterr().err
    with serving(lambda body: (401, {"error": {"message": "bad key"}})) as asked:
        assert main([*words, "--judge-url", asked.url]) == 5
        mend = json.loads(capsys.readouterr().out)["error"]["mend"]
        assert "--judge-key-env" in mend
        assert "is kept" not in mend, "answers that were generated are not"


def test_compare_asks_an_endpoint_too(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taste.json").write_text(json.dumps(TASTE))
    words = [
        "compare",
        str(run),
        str(run),
        "--max-new-tokens",
        "4",
        "--limit",
        "3",
        "--grader",
        str(tmp_path / "taste.json"),
    ]
    with serving(lambda body: completion("7")) as asked:
        assert main([*words, "--judge-url", asked.url, "--json"]) == 0
    assert len(asked.bodies) == 6
    measures = json.loads(capsys.readouterr().out)["evaluation"]["measures"]
    assert measures[-1]["name"] == "taste"


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        (None, ["--judge-url", "http://127.0.0.1:9/v1"], "names no model"),
        ("small", ["--judge-model", "small"], "--judge-url"),
        ("small", ["--judge", "m", "--judge-url", "http://127.0.0.1:9/v1"], "two judges"),
        ("small", ["--judge-url", "nowhere"], "no address"),
        ("small", [], "none is named"),
    ],
)
def test_a_judge_of_graders_that_cannot_be_asked_is_refused_before_anything_is_answered(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    model: str | None, words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.delattr(api, "evaluate_run")
    (tmp_path / "taste.json").write_text(json.dumps({**TASTE, "model": model}))
    assert main(["evaluate", str(run), "--grader", str(tmp_path / "taste.json"), *words]) == 2
    assert said in capsys.readouterr().err.lower()


LABELLED = [{"text": f"Lamp {n} is {'broken' if n % 2 else 'lovely'}.", "label": n % 2} for n in range(8)]
PREFERRED = [{"prompt": f"Where is {n}?", "chosen": f"{n} is here.", "rejected": "No idea"} for n in range(8)]
TEXTS = [{"text": f"Order {n} is on its way, and its total is {n * 7}."} for n in range(8)]


@pytest.mark.parametrize(
    ("kind", "rows", "said", "mend"),
    [
        ("classification", LABELLED, "tells classes apart", "measures what it does"),
        ("dpo", PREFERRED, "answers that are given", "--also"),
        ("clm", TEXTS, "how likely texts are", "Leave --grader"),
    ],
)
def test_graders_and_metrics_of_a_run_without_answers_are_refused_before_its_model_is_loaded(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, run: Path,
    kind: str, rows: list[dict[str, Any]], said: str, mend: str,
) -> None:  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = recipe_values(tiny_model, tmp_path / "rows.jsonl", training={"steps": 1, "checkpoint_every": 1})
    begin({**values, "objective": {"kind": kind}}, tmp_path / kind)
    brief = grader_of({"type": "length", "name": "brief", "most": 3})
    with monkeypatch.context() as before_a_model_is_loaded:
        before_a_model_is_loaded.setattr(api, "load", loads)
        for measures in ({"graders": [brief]}, {"metrics": ["chrf"]}):
            with pytest.raises(UsageError, match=said) as caught:
                api.evaluate(tmp_path / kind, str(tmp_path / "rows.jsonl"), **measures)  # type: ignore[arg-type]
            assert str(tmp_path / kind) in caught.value.found
            assert mend in caught.value.mend
    if "--also" in mend:
        held_out = str(run.parent / "held-out.jsonl")
        found = api.evaluate(
            str(tiny_model), held_out, also=[str(tmp_path / kind)], graders=[brief], sampling=SHORT, limit=2
        )
        assert (found.measures[-1].name, len(found.measures[-1].estimates)) == ("brief", 2)


class Loads(Exception):
    """Models are loaded."""


def loads(*_: object) -> NoReturn:
    """Stands for the first thing that takes its time."""
    raise Loads


REFUSED = (401, {"error": {"message": "bad key"}})


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_an_endpoint_is_found_wanting_before_a_model_is_loaded(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(api, "load", loads)
    (tmp_path / "taste.json").write_text(json.dumps(TASTE))
    words = [command, *[str(run)] * (2 if command == "compare" else 1), "--grader", str(tmp_path / "taste.json")]
    with serving(lambda body: completion("7")) as there, pytest.raises(Loads):  # though it has no list of models
        api.evaluate(run, graders=[grader_of(TASTE)], judge=Endpoint(there.url, ""))
    assert (there.num_lists, there.bodies) == (1, [])
    with serving(lambda body: REFUSED, models=REFUSED) as asked:
        assert main([*words, "--judge-url", asked.url, "--json"]) == 5
    error = json.loads(capsys.readouterr().out)["error"]
    assert asked.url in error["found"]
    assert "--judge-key-env" in error["mend"]
    assert main([*words, "--judge-url", asked.url, "--json"]) == 7, "its server has ended"
    error = json.loads(capsys.readouterr().out)["error"]
    assert f"{asked.url}/chat/completions cannot be reached" in error["found"]
    assert "--judge-url" in error["mend"]


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
