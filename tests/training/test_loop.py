"""The loop: a step's gradient however it is cut, the same bits after a stop, and what ends a run early."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import random_row, random_rows
from models.tiny import tiny_model
from near import assert_all_near, assert_near
from torch import Tensor

from luthier.data.batches import StepBatches, evaluation_batches
from luthier.errors import Interrupted, NotFinite
from luthier.evaluation.loss import held_out_loss
from luthier.methods import Full, LoRA, Method
from luthier.objectives import SFT
from luthier.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from luthier.training.loop import Outside, Plan, Progress, train
from luthier.training.schedule import lr_factor
from luthier.training.settings import EarlyStopping, TrainingSettings
from luthier.training.workers import Workers
from luthier.types import Example

LENGTHS = (12, 5, 9, 7, 12, 3, 10, 8, 6, 11)


@dataclass
class Run:
    """One run of the loop over a tiny model, everything that it says kept in memory."""

    name: str = "llama"
    method: Method = field(default_factory=lambda: LoRA(rank=2, dropout=0.2))
    rows: list[Example] = field(default_factory=lambda: random_rows(LENGTHS))
    steps: int = 5
    rows_per_step: int = 4
    budget: int = 16
    workers: int = 1
    peak_lr: float = 0.01
    evaluate_every: int = 2
    checkpoint_every: int = 100
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    evaluate: Callable[[Run], float] | None = None
    on_step: Callable[[Run, dict[str, Any]], None] | None = None
    autocast: torch.dtype | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    saved: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = tiny_model(self.name)
        self.attachment = self.method.attach(self.model, "default", seed=1)

    def go(self, resume_from: Checkpoint | None = None) -> Progress:
        """Train to the end."""
        batches = StepBatches(
            self.rows, rows_per_step=self.rows_per_step, tokens_per_step=None, budget=self.budget, workers=self.workers,
            layout=self.model.layout, pad_id=0, seed=3, steps=self.steps,
        )  # fmt: skip
        plan = Plan(
            self.settings, 3, self.steps, self.peak_lr, self.evaluate_every, self.checkpoint_every, self.autocast
        )
        evaluate = None if self.evaluate is None else lambda: self.evaluate(self)  # type: ignore[misc]
        outside = Outside(evaluate, self.saved.append, self.record, lambda sentence: None)
        with Workers(self.workers) as workers:
            return train(self.model, self.attachment, SFT(), batches, plan, outside, workers, resume_from)

    def record(self, metrics: dict[str, Any]) -> None:
        """Keep a step's metrics, then do what the test wants done after that step."""
        self.metrics.append(metrics)
        if self.on_step is not None:
            self.on_step(self, metrics)

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors as they are now."""
        return {key: tensor.detach().clone() for key, tensor in self.attachment.trainables.items()}

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of a run of one step: its first moment over 1 − β1."""
        assert self.steps == 1
        (checkpoint,) = self.saved
        prefix = "exp_avg."
        moments = {key.removeprefix(prefix): m for key, m in checkpoint.optimizer.items() if key.startswith(prefix)}
        return {key: moment / (1 - self.settings.optimizer.beta1) for key, moment in moments.items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def one_step(**values: Any) -> Run:
    """A run of one unclipped step."""
    run = Run(steps=1, settings=TrainingSettings(clip_norm=None), **values)
    run.go()
    return run


# ── one step ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-new"])
@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.3), Full()])
def test_eight_micro_batches_of_one_row_give_the_gradient_of_one_of_eight(name: str, method: Method) -> None:
    rows = [random_row(12, document) for document in range(8)]
    runs = [
        one_step(name=name, method=method, rows=rows, rows_per_step=8, budget=budget, workers=workers)
        for budget, workers in ((96, 1), (12, 1), (24, 1), (12, 2))
    ]
    for run in runs[1:]:
        assert_all_near(run.gradient(), runs[0].gradient(), 1e-6)
        assert run.metrics[0]["loss"] == pytest.approx(runs[0].metrics[0]["loss"], rel=1e-6)
        assert run.metrics[0]["grad_norm"] == pytest.approx(runs[0].metrics[0]["grad_norm"], rel=1e-6)


def test_the_gradient_is_that_of_the_weighted_mean_loss_over_the_whole_step() -> None:
    run = one_step(method=LoRA(rank=2), rows_per_step=10, budget=16)
    fresh = Run(method=LoRA(rank=2))
    rows = random_rows(LENGTHS)
    total = sum(float(row.weight_N.sum()) for row in rows)
    loss = torch.zeros(())
    for batch in evaluation_batches(rows, 1000, 1, "packed", 0):
        loss = loss - (fresh.model.forward(batch, "default").logprob_N * batch.targets.weight_N).sum() / total
    trainables = fresh.attachment.trainables
    expected = dict(zip(trainables, torch.autograd.grad(loss, list(trainables.values())), strict=True))
    assert_all_near(run.gradient(), expected, 1e-6)
    assert run.metrics[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)


@pytest.mark.parametrize("clip", [0.01, 1e6])
def test_clipping_scales_a_long_gradient_to_the_given_length_and_leaves_a_short_one(clip: float) -> None:
    free = one_step()
    run = Run(steps=1, settings=TrainingSettings(clip_norm=clip))
    run.go()
    norm = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in free.gradient().values()])))
    assert run.metrics[0]["grad_norm"] == free.metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    expected = {key: gradient * min(1.0, clip / norm) for key, gradient in free.gradient().items()}
    assert_all_near(run.gradient(), expected, 1e-6)


def test_bf16_autocast_gives_nearly_the_fp32_gradient_in_fp32() -> None:
    exact, mixed = one_step(), one_step(autocast=torch.bfloat16)
    assert {gradient.dtype for gradient in mixed.gradient().values()} == {torch.float32}
    one, other = (torch.cat([g.flatten() for g in run.gradient().values()]) for run in (exact, mixed))
    assert float(torch.nn.functional.cosine_similarity(one, other, dim=0)) > 0.99
    assert not torch.equal(one, other)


# ── several steps ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_step_is_told_once_with_all_its_numbers() -> None:
    run = Run(steps=6, checkpoint_every=4, evaluate=lambda run: 1.5)
    progress = run.go()
    assert progress.step == 6
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6]
    for line in run.metrics:
        assert set(line) - {"validation_loss"} == {
            "step", "epoch", "loss", "learned_tokens", "real_tokens", "seconds", "tokens_per_second", "lr", "grad_norm",
            "memory_bytes", "peak_memory_bytes",
        }  # fmt: skip
        assert line["lr"] == run.peak_lr * lr_factor(run.settings.schedule, line["step"], 6)
        assert line["tokens_per_second"] == line["real_tokens"] / line["seconds"]
        assert 0 < line["memory_bytes"] <= 1.01 * line["peak_memory_bytes"], "the kernel counts the two apart"
        json.dumps(line)
    assert [line["step"] for line in run.metrics if "validation_loss" in line] == [2, 4, 6]
    assert sum(line["real_tokens"] for line in run.metrics[:3]) == sum(LENGTHS), "ten rows in steps of four"
    assert [checkpoint.step for checkpoint in run.saved] == [2, 4, 6], "the best, every fourth, the last"


def test_training_lowers_the_loss_on_what_it_learns() -> None:
    for method in (LoRA(rank=4), Full()):
        run = Run(method=method, steps=30, rows=random_rows((12, 9)), rows_per_step=2, peak_lr=0.02)
        run.go()
        assert run.metrics[-1]["loss"] < 0.5 * run.metrics[0]["loss"]


@pytest.mark.parametrize("name", ["llama", "falcon-alibi"])
def test_two_workers_give_what_one_gives_and_the_same_bits_every_time(name: str) -> None:
    alone = Run(name=name, steps=1, budget=12, settings=TrainingSettings(clip_norm=None))
    alone.go()
    together = [
        Run(name=name, steps=1, budget=12, workers=2, settings=TrainingSettings(clip_norm=None)) for _ in range(2)
    ]
    for run in together:
        run.go()
        assert_all_near(run.gradient(), alone.gradient(), 1e-6)
    longer = [Run(name=name, steps=6, budget=12, workers=2) for _ in range(3)]
    for run in longer:
        run.go()
        assert same_bits(run.weights(), longer[0].weights())
        assert [line["loss"] for line in run.metrics] == [line["loss"] for line in longer[0].metrics]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.3, lr_ratio=4, targets=("q_proj", "embed_tokens")), Full()])
def test_a_run_resumed_after_any_step_ends_with_the_bits_of_one_that_never_stopped(
    method: Method, workers: int, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"method": method, "steps": 6, "checkpoint_every": 1, "workers": workers}
    unbroken = Run(**values)
    unbroken.go()
    assert [checkpoint.step for checkpoint in unbroken.saved] == [1, 2, 3, 4, 5, 6]
    for checkpoint in unbroken.saved:
        save_checkpoint(tmp_path, checkpoint)
        resumed = Run(**values)
        progress = resumed.go(load_checkpoint(tmp_path, checkpoint.step))
        assert progress == Progress(step=6)
        assert same_bits(resumed.weights(), unbroken.weights())
        for one, other in zip(resumed.metrics, unbroken.metrics[checkpoint.step :], strict=True):
            assert (one["step"], one["loss"], one["grad_norm"]) == (other["step"], other["loss"], other["grad_norm"])
        if checkpoint.step < 6:
            last, expected = resumed.saved[-1], unbroken.saved[-1]
            assert same_bits(last.optimizer, expected.optimizer)
            assert last.state == expected.state


def loss_on_some_rows(run: Run) -> float:
    """The held-out loss of a run's model as it is."""
    held_out = evaluation_batches(random_rows((6, 14, 9)), 16, run.workers, run.model.layout, 0)
    with Workers(run.workers) as workers:
        return held_out_loss(run.model, SFT(), held_out, run.attachment.adapter, workers)


@pytest.mark.parametrize("method", [LoRA(rank=2, dropout=0.3), Full()])
def test_evaluating_between_steps_changes_no_bit_of_what_is_trained(method: Method) -> None:
    with_, without = Run(method=method, evaluate_every=1, evaluate=loss_on_some_rows), Run(method=method)
    with_.go()
    without.go()
    assert same_bits(with_.weights(), without.weights())
    assert with_.metrics[-1]["validation_loss"] == loss_on_some_rows(with_)


def test_the_held_out_loss_is_the_weighted_mean_and_drops_nothing() -> None:
    run = Run(method=LoRA(rank=2, dropout=0.9))
    rows = random_rows((6, 14, 9))
    logprobs = [run.model.forward(b, "default").logprob_N for b in evaluation_batches(rows, 14, 1, "packed", 0)]
    weights = torch.cat([b.targets.weight_N for b in evaluation_batches(rows, 14, 1, "packed", 0)])
    expected = -(torch.cat(logprobs) * weights).sum() / weights.sum()
    for workers in (1, 2):
        run.workers = workers
        assert loss_on_some_rows(run) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_gradient_checkpointing_trains_the_same_bits() -> None:
    plain, checkpointed = Run(), Run()
    checkpointed.model.checkpoint_layers()
    plain.go()
    checkpointed.go()
    assert same_bits(plain.weights(), checkpointed.weights())


# ── early ends ──────────────────────────────────────────────────────────────────────────────────────────────────────


def scripted(losses: list[float]) -> Callable[[Run], float]:
    """An evaluation that gives these losses in turn."""
    left = iter(losses)
    return lambda run: next(left)


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "ends", "best"),
    [
        ([3.0, 2.0, 2.5, 2.4, 1.0, 0.5], 2, 0.0, 4, 2),
        ([3.0, 2.0, 2.5, 1.9, 2.2, 1.8], 2, 0.0, 6, 6),
        ([3.0, 2.95, 2.92, 2.5, 2.49, 2.48], 2, 0.1, 3, 1),
        ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], 1, 0.0, 2, 1),
    ],
)
def test_early_stopping_ends_after_so_many_evaluations_without_a_better_loss(
    losses: list[float], patience: int, min_delta: float, ends: int, best: int
) -> None:
    stopping = EarlyStopping(patience=patience, min_delta=min_delta)
    run = Run(steps=6, evaluate_every=1, evaluate=scripted(losses), settings=TrainingSettings(early_stopping=stopping))
    progress = run.go()
    assert (progress.step, progress.best_step, progress.best_loss) == (ends, best, losses[best - 1])
    assert progress.stopped_early == (ends < 6)
    assert {best, ends} <= {checkpoint.step for checkpoint in run.saved}
    again = Run(steps=6, evaluate_every=1, evaluate=scripted([]), settings=run.settings)
    assert again.go(run.saved[-1]) == progress, "a run that has ended does not go on"
    assert again.metrics == []


def test_without_early_stopping_a_rising_loss_ends_nothing() -> None:
    run = Run(steps=5, evaluate_every=1, evaluate=scripted([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert run.go().step == 5
    assert 1 in {checkpoint.step for checkpoint in run.saved}, "the best one is kept"


def test_patience_counts_on_over_a_stop() -> None:
    settings = TrainingSettings(early_stopping=EarlyStopping(patience=3))
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    first = Run(steps=6, evaluate_every=1, checkpoint_every=1, evaluate=scripted(losses), settings=settings)
    first.go()
    second = Run(steps=6, evaluate_every=1, evaluate=scripted(losses[2:]), settings=settings)
    assert second.go(first.saved[1]).step == first.metrics[-1]["step"] == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(value: float) -> None:
    def poison(run: Run, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2:
            run.model.hf.get_submodule("model.norm").weight.data[3] = value

    run = Run(on_step=poison, checkpoint_every=1)
    with pytest.raises(NotFinite) as stopped:
        run.go()
    assert [line["step"] for line in run.metrics] == [1, 2]
    assert same_bits(run.weights(), run.saved[-1].trainables)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in run.weights().values())
    assert "step 3" in stopped.value.found
    assert "peak_lr" in stopped.value.mend


def test_weights_that_an_update_made_infinite_are_never_saved() -> None:
    def poison(run: Run, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2:
            next(iter(run.attachment.trainables.values())).data[0, 0] = float("inf")

    run = Run(on_step=poison, checkpoint_every=1)
    with pytest.raises(NotFinite):
        run.go()
    assert [checkpoint.step for checkpoint in run.saved] == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_held_out_loss_that_is_not_finite_ends_the_run(value: float) -> None:
    run = Run(evaluate=lambda run: value)
    with pytest.raises(NotFinite):
        run.go()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_and_sigterm_end_the_step_save_it_and_can_be_gone_on_from(
    number: signal.Signals, code: int, workers: int
) -> None:
    def interrupt(run: Run, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 3:
            signal.raise_signal(number)

    run = Run(on_step=interrupt, workers=workers)
    with pytest.raises(Interrupted) as stopped:
        run.go()
    assert stopped.value.exit_code == code
    assert [checkpoint.step for checkpoint in run.saved] == [3]
    unbroken, resumed = Run(workers=workers), Run(workers=workers)
    unbroken.go()
    resumed.go(run.saved[-1])
    assert same_bits(resumed.weights(), unbroken.weights())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_step_that_was_saved_already_is_not_saved_again_for_the_stop() -> None:
    run = Run(on_step=lambda run, metrics: signal.raise_signal(signal.SIGTERM), checkpoint_every=1)
    with pytest.raises(Interrupted):
        run.go()
    assert [checkpoint.step for checkpoint in run.saved] == [1]


def test_a_stop_asked_for_in_the_last_step_lets_the_run_end() -> None:
    def interrupt(run: Run, metrics: dict[str, Any]) -> None:
        if metrics["step"] == run.steps:
            signal.raise_signal(signal.SIGINT)

    run = Run(on_step=interrupt)
    assert run.go().step == run.steps


def test_a_second_ctrl_c_stops_at_once_without_saving() -> None:
    def interrupt_twice(run: Run, metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    run = Run(on_step=interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert run.saved == []


def test_an_error_of_one_worker_ends_the_run_with_that_error() -> None:
    run = Run(workers=2, budget=12)
    run.model.hf.get_submodule("lm_head").register_forward_pre_hook(lambda module, args: 1 / 0)
    object.__setattr__(run.model, "fast", type(run.model.fast)(head=False))
    with pytest.raises(ZeroDivisionError):
        run.go()
    assert run.saved == []


def test_trained_tensors_that_the_loss_does_not_reach_stay_as_they_were() -> None:
    run = Run(method=Full(layers=(0, 1), train_embedding=False), name="gpt2", steps=2)
    before = run.weights()
    run.go()
    assert not same_bits(run.weights(), before)
    assert_near(
        run.model.hf.get_parameter("transformer.wte.weight"),
        tiny_model("gpt2").hf.get_parameter("transformer.wte.weight"),
        0.0,
    )
