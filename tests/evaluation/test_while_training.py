"""Metrics of answers while a model is trained: they are those of its answers, and the training knows nothing of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny_runs import Cut, begin, course, cut_after, go_on, outcome, recipe_values, trained_files, write_rows

from luthier.cli.display import Course
from luthier.errors import DataError, LuthierError, NotFound, RecipeError
from luthier.evaluation.answer_curves import answer_columns, answer_lines
from luthier.evaluation.compare import SCORES, score_measures
from luthier.evaluation.named_metrics import ALWAYS, NAMES, named_measure
from luthier.evaluation.report import write_loss_plot
from luthier.recipe import load_recipe, make_recipe
from luthier.training.settings import MetricName

ANSWERS = {"metrics": ["chrf", "rouge-1", "token-f1"], "rows": 3, "max_new_tokens": 6}


def values(model: Path, folder: Path, **training: Any) -> dict[str, Any]:
    rows, held_out = write_rows(folder / "rows.jsonl", 12), write_rows(folder / "held_out.jsonl", 5, start=50)
    found = recipe_values(model, rows, data={"validation": str(held_out)}, training={"evaluate_every": 2, **training})
    found["method"]["dropout"] = 0.2
    return found


def test_the_trained_bits_are_the_same_with_and_without(tiny_model: Path, tmp_path: Path) -> None:
    begin(values(tiny_model, tmp_path), tmp_path / "without")
    begin(values(tiny_model, tmp_path, evaluate_generated=ANSWERS), tmp_path / "with")
    assert trained_files(tmp_path / "with") == trained_files(tmp_path / "without")
    lines = course(tmp_path / "with")
    assert answer_columns(lines) == ["validation_chrf", "validation_rouge-1", "validation_token-f1"]
    assert [line["step"] for line in lines if "validation_chrf" in line] == [2, 4, 6]
    bare = [{name: value for name, value in line.items() if name not in answer_columns(lines)} for line in lines]
    assert bare == course(tmp_path / "without")
    report = (tmp_path / "with" / "report.md").read_text()
    assert "Answers to held-out rows, chrf:" in report


def test_a_run_that_was_broken_off_measures_the_same(tiny_model: Path, tmp_path: Path) -> None:
    recipe = values(tiny_model, tmp_path, evaluate_generated=ANSWERS)
    begin(recipe, tmp_path / "whole")
    with pytest.raises(Cut):
        begin(recipe, tmp_path / "broken", on_step=cut_after(5))
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


def test_what_can_not_be_measured_is_said_before_the_first_step(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "words.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"p{n}", "completion": "words"}) + "\n" for n in range(9)))
    recipe = values(tiny_model, tmp_path, evaluate_generated={"metrics": ["number"]})
    recipe["data"]["validation"] = str(rows)
    with pytest.raises(DataError, match="number"):
        begin(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


LONG_ENOUGH = "def metric(row, answer):\n    return len(answer) + len(row['prompt'])\n"


def test_graders_and_python_files_are_curves_of_their_own(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "likeness.yaml").write_text(
        "{type: text_similarity, name: likeness, evaluation_metric: rouge_1, input: '{{ sample.output_text }}', "
        "reference: '{{ item.reference }}'}"
    )
    (tmp_path / "length.py").write_text(LONG_ENOUGH)
    files = {"graders": [str(tmp_path / "likeness.yaml"), str(tmp_path / "length.py")]}
    begin(
        values(tiny_model, tmp_path, evaluate_generated={**ANSWERS, "metrics": ["rouge-1"], **files}), tmp_path / "run"
    )
    lines = [line for line in course(tmp_path / "run") if "validation_rouge-1" in line]
    assert answer_columns(lines) == ["validation_rouge-1", "validation_likeness", "validation_length"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        assert line["validation_likeness"] == pytest.approx(line["validation_rouge-1"])
        assert line["validation_length"] > len("p")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{type: score_model, name: taste, model: m, input: [{role: user, content: hm}]}", "asks a model that judges"),
        ("{type: string_check, name: loss, operation: eq, input: a, reference: a}", "as another curve"),
        ("{type: string_check, name: chrf, operation: eq, input: a, reference: a}", "as another curve"),
        ("just words", "no grader|mapping"),
    ],
)
def test_graders_that_make_no_curve_are_refused_before_the_first_step(
    tiny_model: Path, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "grader.yaml").write_text(text)
    recipe = values(tiny_model, tmp_path, evaluate_generated={**ANSWERS, "graders": [str(tmp_path / "grader.yaml")]})
    with pytest.raises(LuthierError, match=said):
        begin(recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_grader_s_file_is_looked_for_beside_the_recipe(tiny_model: Path, tmp_path: Path) -> None:
    recipe = values(tiny_model, tmp_path, evaluate_generated={**ANSWERS, "graders": ["likenes.yaml"]})
    (tmp_path / "likeness.yaml").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(NotFound, match=r"likenes\.yaml") as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert "likeness.yaml" in caught.value.mend
    assert caught.value.field == "training.evaluate_generated.graders[0]"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"training": {"evaluate_generated": {"metrics": []}}}, "names no metric"),
        ({"data": {"validation": "none"}}, "data.validation is none"),
        ({"objective": {"kind": "clm"}}, "does not learn to answer"),
        ({"training": {"evaluate_generated": {"metrics": ["beauty"]}}}, "beauty|metrics"),
    ],
)
def test_recipes_that_do_not_go_together_are_refused(
    tiny_model: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    recipe = values(tiny_model, tmp_path, evaluate_generated=ANSWERS)
    for name, part in change.items():
        recipe[name] = {**recipe.get(name, {}), **part}
    with pytest.raises(RecipeError, match=said):
        make_recipe(recipe)


def test_what_evaluation_measures_unasked_is_measured_alike_on_the_way() -> None:
    answers, references = ["The lamp.", "a red lamp", "no", ""], [("the lamp",), ("lamp", "a lamp"), ("yes",), ("x",)]
    assert set(ALWAYS.values()) == {name for name, _ in SCORES}
    for measure in score_measures([answers], references):
        (name,) = (name for name, shown in ALWAYS.items() if shown == measure.name)
        assert named_measure(name, [answers], references)[0].estimates[0].value == pytest.approx(
            measure.estimates[0].value, abs=1e-12
        )


def test_every_named_metric_may_be_asked_for() -> None:
    assert set(get_args(MetricName)) == set(NAMES)


def test_progress_report_and_curves_show_them(tmp_path: Path) -> None:
    metrics = [
        {"step": step, "loss": 1.0, "lr": 1e-3, "validation_loss": 1.0, "validation_accuracy": value}
        for step, value in ((1, 0.25), (2, 0.75), (3, 0.5))
    ]
    assert answer_lines(metrics) == [
        "Answers to held-out rows, accuracy: 0.500 at the end; highest 0.750 after step 2."
    ]
    shown = Course()
    for each in metrics:
        shown.take({**each, "total_steps": 3, "tokens_per_second": 1.0, "memory_bytes": 0, "seconds": 1.0}, 1.0)
    assert "accuracy 0.500" in shown.summary()
    for name, lines in (("with", metrics), ("without", [{**each, "validation_accuracy": None} for each in metrics])):
        write_loss_plot([{k: v for k, v in line.items() if v is not None} for line in lines], tmp_path / f"{name}.png")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
