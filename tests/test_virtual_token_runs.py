"""Runs with virtual tokens: the same rows and counts as any run, loaded, measured and asked with their placeholders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model
from tiny_runs import begin, nothing, recipe_values, write_rows

from luthier import api
from luthier.data.dataset import load_dataset
from luthier.errors import DataError, GateRefusal
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.compare import Question, check_room
from luthier.evaluation.loss_by_row import losses_by_row
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.methods import ADAPTER
from luthier.ops.workers import Workers
from luthier.recipe import make_recipe
from luthier.tuned import load_run
from luthier.types import Origin

METHODS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"num_virtual_tokens": 5},
    "prefix-tuning": {"num_virtual_tokens": 5, "projection": 8},
    "unipelt": {"prefix": {"num_virtual_tokens": 5}, "lora": {"rank": 2}},
}


def values_of(desk: Path, kind: str, **data: Any) -> dict[str, Any]:
    """A recipe with held-out rows."""
    method = {"kind": kind, "rank": None, **METHODS.get(kind, {})}
    parts = {"data": {"validation": str(desk / "held-out.jsonl"), **data}, "method": method}
    return recipe_values(desk / "model", desk / "rows.jsonl", **parts)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and rows, and a run of LoRA on them."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    write_rows(desk / "rows.jsonl", 12)
    write_rows(desk / "held-out.jsonl", 4, start=40)
    begin(values_of(desk, "lora"), desk / "lora")
    return desk


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", METHODS)
def test_a_run_takes_the_steps_of_any_other_method_and_its_result_is_measured_as_the_loop_did(
    kind: str, desk: Path
) -> None:
    begin(values_of(desk, kind), desk / kind)
    metrics = metrics_of(desk / kind)
    counts = [(line["real_tokens"], line["learned_tokens"]) for line in metrics]
    assert counts == [(line["real_tokens"], line["learned_tokens"]) for line in metrics_of(desk / "lora")]
    model = load_run(desk / kind, nothing)
    assert model.num_virtual(ADAPTER) == 5
    recipe = make_recipe(values_of(desk, kind))
    held_out = load_dataset(recipe.data, model.tokenizer, recipe.objective.example, nothing).validation
    rows = [replace(example, document=index) for index, example in enumerate(held_out)]
    with Workers(1) as workers:
        losses = losses_by_row(
            Candidate("tuned", model, ADAPTER), rows, len(rows), 192, workers, lambda task, done, total: None
        )
    loss = float(losses.nats_R.sum() / losses.weight_R.sum())
    assert loss == pytest.approx(metrics[-1]["validation_loss"], rel=1e-5)
    evaluation = api.evaluate(desk / kind, sampling=Sampling(max_new_tokens=3))
    assert evaluation.measures[0].estimates[1].value == pytest.approx(loss, rel=1e-4)


def test_virtual_tokens_take_room_in_the_context(desk: Path) -> None:
    if not (desk / "prompt-tuning").exists():
        begin(values_of(desk, "prompt-tuning"), desk / "prompt-tuning")
    model = load_run(desk / "prompt-tuning", nothing)
    assert model.context_length == 1024
    sampling = Sampling(max_new_tokens=50)
    (answer,) = generate(model, [Request((9,) * (1024 - 5 - 2), sampling, ADAPTER)])
    assert len(answer.tokens) <= 2
    with pytest.raises(DataError, match="5 of them virtual"):
        generate(model, [Request((9,) * (1024 - 5), sampling, ADAPTER)])
    generate(model, [Request((9,) * (1024 - 5), Sampling(max_new_tokens=1))])
    question = Question(Origin("rows", 1), (9,) * (1024 - 5), "", "")
    check_room(Candidate("base", model), [question], [])
    with pytest.raises(DataError, match="5 of them virtual"):
        check_room(Candidate("tuned", model, ADAPTER), [question], [])


def test_a_row_that_no_longer_fits_behind_the_virtual_tokens_is_refused_with_the_length_that_does(desk: Path) -> None:
    config = json.loads((desk / "model" / "config.json").read_text())
    longest = max(metrics["real_tokens"] for metrics in metrics_of(desk / "lora"))
    assert longest < 1024
    short = desk / "short"
    if not short.exists():
        write_tiny_model(short)
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    values = {**values_of(desk, "prompt-tuning"), "model": str(short)}
    values["method"] = {"kind": "prompt-tuning", "num_virtual_tokens": 100}
    with pytest.raises(GateRefusal, match="100 of them virtual") as caught:
        begin(values, desk / "refused")
    assert "max_length to 28" in caught.value.mend
