"""Models of no run, measured alone or against each other: plain ones, exported ones, and what they are refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from pages import Page
from tiny_model import write_tiny_encoder
from tiny_runs import begin, nothing, recipe_values, write_rows

from luthier import api
from luthier.cli import main as program
from luthier.errors import NotFound, RecipeError, UsageError
from luthier.generation.settings import Sampling
from luthier.recipe.loading import recipe_of_run
from luthier.studies.exporting import export_run

SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a run, what it was exported to, and rows to evaluate on."""
    desk = tmp_path_factory.mktemp("desk")
    write_rows(desk / "rows.jsonl", 24)
    write_rows(desk / "others.jsonl", 12, start=40)
    begin(recipe_values(tiny_model, desk / "rows.jsonl", training={"steps": 4}), desk / "run")
    export_run(desk / "run", recipe_of_run(desk / "run"), desk / "merged", nothing)
    return desk


def values_of(evaluation: Any, name: str) -> list[float]:
    (measure,) = [each for each in evaluation.measures if each.name == name]
    return [estimate.value for estimate in measure.estimates]


def test_a_plain_and_an_exported_model_measure_as_base_and_tuned_model_of_the_run(desk: Path, tiny_model: Path) -> None:
    rows = str(desk / "others.jsonl")
    of_run = api.evaluate(desk / "run", rows, sampling=SHORT)
    for place, folder in enumerate((tiny_model, desk / "merged")):
        alone = api.evaluate(str(folder), rows, sampling=SHORT, metrics=["chrf"])
        assert alone.candidates == (str(folder),)
        assert alone.outcome is None
        assert values_of(alone, "loss") == [pytest.approx(values_of(of_run, "loss")[place], rel=1e-4)]
        assert [each.answers[0] for each in alone.answers] == [each.answers[place] for each in of_run.answers]
        assert alone.sentences[0].startswith(f"{folder}: loss ")
        assert "chrf" in alone.sentences[0]


def test_reports_on_a_model_of_no_run_go_to_a_new_folder(
    desk: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "evaluate",
        str(tiny_model),
        "--data",
        str(desk / "others.jsonl"),
        "--max-new-tokens",
        "2",
        "--no-forgetting",
    ]
    words += ["--limit", "3", "--out", str(tmp_path / "reports")]
    assert program.main(words) == 0
    told = capsys.readouterr().out
    command = shlex.join(["luthier", *words])
    page = Page((tmp_path / "reports" / "report.html").read_text())
    report = (tmp_path / "reports" / "report.md").read_text()
    kept = json.loads((tmp_path / "reports" / "evaluation.json").read_text())
    assert (kept["verdict"], kept["command"], kept["rows"]) == (None, command, 3)
    assert kept["summary"] in told
    assert {kept["summary"], command, "ROUGE-L"} <= set(page.text)
    assert page.tags.count("dl") == 3
    assert kept["summary"] in report
    assert command in report
    assert program.main(words) == 2  # the folder is there now
    assert "is there already" in capsys.readouterr().err
    assert program.main(["evaluate", str(desk / "run"), "--out", str(tmp_path / "other")]) == 2
    assert "in its own folder" in capsys.readouterr().err


def test_models_are_compared_with_the_first_of_them(desk: Path, tiny_model: Path) -> None:
    also = [str(desk / "merged"), str(desk / "run")]
    found = api.evaluate(str(tiny_model), str(desk / "others.jsonl"), also=also, sampling=SHORT, probes=True)
    assert found.candidates == (str(tiny_model), *also)
    first, merged, run = values_of(found, "loss")
    assert merged == pytest.approx(run, rel=1e-4) != first
    assert found.outcome is not None
    assert found.outcome.sentence.startswith(str(desk / "run"))
    assert found.forgetting is not None
    beside = api.evaluate(desk / "run", str(desk / "others.jsonl"), also=also[:1], sampling=SHORT)
    assert beside.candidates == ("base", "tuned", also[0])


def test_the_command_measures_a_model_and_writes_no_report(
    desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(desk)
    words = ["evaluate", "merged", "--data", "others.jsonl", "--max-new-tokens", "4", "--json"]
    assert program.main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["model"], document["candidates"], document["verdict"]) == ("merged", ["merged"], None)
    assert set(document["forgetting"]["metrics"]) == {"general text", "general instructions", "general questions"}
    assert "run" not in document
    assert not (desk / "merged" / "evaluation.json").exists()
    assert program.main(["evaluate", "merged", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert "--data FILE" in error["mend"]
    assert "--suite" in error["mend"]


def test_what_only_a_run_has_is_refused_of_a_model(desk: Path, tmp_path: Path, tiny_model: Path) -> None:
    rows = str(desk / "others.jsonl")
    with pytest.raises(UsageError, match="no run but a model"):
        api.evaluate(str(tiny_model))
    with pytest.raises(UsageError, match="neither training rows nor rewards") as caught:
        api.evaluate(str(tiny_model), rows, shots=2)
    assert "--shots" in caught.value.mend
    for name in (str(tmp_path / "nothing"), "nothing", f"{desk}/no-run"):
        with pytest.raises(NotFound, match="no run called"):
            api.evaluate(name, rows)
    with pytest.raises(NotFound, match="holds no run"):
        api.evaluate(str(desk), rows)
    write_tiny_encoder(tmp_path / "encoder")
    with pytest.raises(RecipeError, match="cannot write"):
        api.evaluate(str(tmp_path / "encoder"), rows)


def test_a_suite_measures_a_model_alone(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = write_rows(tmp_path / "rows.jsonl", 6)
    (tmp_path / "task.yaml").write_text(
        f"task: answer\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: '{data}'}}\ntest_split: test\n"
        "output_type: generate_until\ndoc_to_text: '{{prompt}}'\ndoc_to_target: '{{completion}}'\n"
        "generation_kwargs: {until: ['?'], max_gen_toks: 4, do_sample: false}\nmetric_list: [{metric: exact_match}]\n"
    )
    suite = f"lm-eval:{tmp_path / 'task.yaml'}"
    found = api.evaluate(str(tiny_model), suites=[suite])
    assert [measure.name for measure in found.measures] == ["answer: exact_match"]
    assert (found.num_rows, found.outcome) == (6, None)
    with pytest.raises(UsageError, match="its own rows"):
        api.evaluate(str(tiny_model), str(data), suites=[suite])
