"""Updates within the backward pass: the weights of a step as ever, with one gradient at a time."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from near import assert_near
from tiny_runs import begin, course, recipe_values, write_rows
from torch import Tensor, nn
from training.runs import Run

from luthier.errors import GateRefusal, NotFinite, RecipeError, ResourceError
from luthier.methods import Full, Group
from luthier.models.language_model import LanguageModel
from luthier.recipe import make_recipe
from luthier.rlhf import ALGORITHMS
from luthier.training.flat import FlatTrainables
from luthier.training.in_backward import descend
from luthier.training.optimizers import OPTIMIZERS, AdamW, OptimizerSettings, PerTensor
from luthier.training.settings import TrainingSettings


def settings(early: bool, optimizer: OptimizerSettings) -> TrainingSettings:
    """A loop without clipping, its updates in the backward pass or after it."""
    return TrainingSettings(clip_norm=None, update_in_backward=early, optimizer=optimizer)


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.model_fields["kind"].default)
def test_every_optimizer_moves_the_weights_as_after_the_backward_pass(kind: type[OptimizerSettings]) -> None:
    runs = [
        Run(method=Full(), budget=64, rows_per_step=4, peak_lr=0.001, settings=settings(early, kind()))
        for early in (True, False)
    ]
    for run in runs:
        run.go()
    assert [metrics["loss"] for metrics in runs[0].metrics] == pytest.approx(
        [m["loss"] for m in runs[1].metrics], rel=1e-5
    )
    assert [m["grad_norm"] for m in runs[0].metrics] == pytest.approx(
        [m["grad_norm"] for m in runs[1].metrics], rel=1e-4
    )
    for name, tensor in runs[1].weights().items():
        assert_near(runs[0].weights()[name], tensor, 1e-4)


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    whole = Run(method=Full(), budget=64, peak_lr=0.001, settings=settings(True, AdamW()), checkpoint_every=2)
    whole.go()
    again = Run(method=Full(), budget=64, peak_lr=0.001, settings=settings(True, AdamW()), checkpoint_every=2)
    again.go(whole.saved[0])
    assert all(torch.equal(again.weights()[name], tensor) for name, tensor in whole.weights().items())


def test_no_two_gradients_are_held_at_once() -> None:
    layers = [nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(index))) for index in range(5)]
    flat = FlatTrainables([Group({str(index): layer for index, layer in enumerate(layers)})], workers=0)
    alive: set[int] = set()
    most = [0]

    class Watching(PerTensor):
        def step_of(self, group: Any, name: str, gradient: Tensor, lr: float) -> None:
            alive.add(id(gradient))
            weakref.finalize(gradient, alive.discard, id(gradient))
            most[0] = max(most[0], len(alive))
            super().step_of(group, name, gradient, lr)

    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(9))
    for layer in layers:
        x = torch.tanh(x @ layer)
    descend(x.square().sum(), Watching(flat, AdamW()), 0.01)
    assert most == [1]
    assert all(layer.grad is None for layer in layers)


def test_a_start_worse_than_guessing_is_refused_before_the_weights_change() -> None:
    run = Run(method=Full(), budget=64, steps=1, worst_start=0.1, settings=settings(True, AdamW()))
    before = run.weights()
    with pytest.raises(GateRefusal, match="cannot read these rows"):
        run.go()
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in before.items())


def test_a_gradient_that_is_not_finite_ends_the_run_with_its_name() -> None:
    tensor = nn.Parameter(torch.zeros(3))
    flat = FlatTrainables([Group({"weight": tensor})], workers=0)
    with pytest.raises(NotFinite, match="The gradient of weight is not finite"):
        descend(torch.sqrt(tensor).sum(), PerTensor(flat, AdamW()), 0.1)
    assert torch.equal(tensor, torch.zeros(3))


@pytest.mark.parametrize(
    ("training", "field", "words"),
    [
        ({"clip_norm": 1.0}, "training", "cannot be clipped"),
        ({"workers": 2}, "training", "Set workers to 1"),
        (
            {"memory_limit_gb": 4.0},
            "training.memory_limit_gb",
            "Leave memory_limit_gb out, or take update_in_backward out",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_the_recipe(
    training: dict[str, Any], field: str, words: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    values = recipe_values(tiny_model, rows, method={"kind": "full", "rank": None})
    values["training"] |= {"update_in_backward": True, "clip_norm": None, **training}
    with pytest.raises(RecipeError, match=words) as refused:
        make_recipe(values)
    assert str(refused.value.field).startswith(field)


def test_beside_a_method_with_small_gradients_it_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    values = recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 4))
    values["training"] |= {"update_in_backward": True, "clip_norm": None}
    with pytest.raises(RecipeError, match="too small to be worth it"):
        make_recipe(values)


@pytest.mark.parametrize("kind", [algorithm.model_fields["kind"].default for algorithm in ALGORITHMS])
def test_with_answers_that_are_drawn_it_is_refused(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    values = recipe_values(
        tiny_model, write_rows(tmp_path / "rows.jsonl", 4), method={"kind": "full", "rank": None},
        objective={"kind": kind, "rewards": [{"grader": {"type": "length", "most": 5}}], "max_new_tokens": 8},
    )  # fmt: skip
    make_recipe(values)
    values["training"] |= {"update_in_backward": True, "clip_norm": None}
    with pytest.raises(
        RecipeError, match=re.escape(f"objective.kind {kind} learns from answers that are drawn")
    ) as refused:
        make_recipe(values)
    assert refused.value.field == "training.update_in_backward"
    assert "ake update_in_backward out" in refused.value.mend


def test_a_shortage_ends_the_run_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any, **__: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(LanguageModel, "forward", forward)
    with pytest.raises(ResourceError, match="not enough memory") as refused:
        Run(method=Full(), budget=64, settings=settings(True, AdamW())).go()
    assert "take training.update_in_backward out" in refused.value.mend


def test_a_step_of_several_micro_batches_is_refused_before_the_first(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    values = recipe_values(tiny_model, rows, method={"kind": "full", "rank": None})
    values["training"] |= {"update_in_backward": True, "clip_norm": None, "rows_per_step": 8, "peak_lr": 0.001}
    with pytest.raises(RecipeError, match="would have to be held and added up") as refused:
        begin(values, tmp_path / "run")
    assert refused.value.field == "training.update_in_backward"
    values["training"]["tokens_per_micro_batch"] = 4096
    begin(values, tmp_path / "run")
    losses = [line["loss"] for line in course(tmp_path / "run")]
    assert losses[-1] < losses[0]
