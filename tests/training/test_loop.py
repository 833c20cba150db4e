"""The loop: a step's gradient however it is cut; and the same bits after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import random_row, random_rows
from near import assert_all_near, assert_near
from training.runs import LENGTHS, Run, one_step, same_bits

from luthier.data.batches import evaluation_batches
from luthier.errors import GateRefusal
from luthier.evaluation.loss import held_out_loss
from luthier.methods import Full, LoRA, Method
from luthier.objectives import SFT
from luthier.ops.workers import Workers
from luthier.training.checkpoint import load_checkpoint, save_checkpoint
from luthier.training.progress import Progress
from luthier.training.schedule import lr_factor
from luthier.training.settings import TrainingSettings

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
    expected = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(trainables.values()))])
    # as one vector: both sides round, which a tensor of small entries shows beside its own largest
    assert_near(torch.cat([run.gradient()[name].flatten() for name in trainables]), expected, 1e-6)
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


def test_a_start_worse_than_guessing_is_refused_before_the_weights_change() -> None:
    loss = one_step().metrics[0]["loss"]
    assert one_step(worst_start=loss + 0.1).metrics[0]["loss"] == loss
    run = Run(steps=2, worst_start=loss - 0.1)
    before = run.weights()
    with pytest.raises(GateRefusal, match="more than a guess") as caught:
        run.go()
    assert (caught.value.field, run.metrics) == ("model", [])
    assert same_bits(run.weights(), before)
    later = Run(steps=2, worst_start=100.0)
    later.go()
    assert len(later.metrics) == 2


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


def test_a_stop_ends_an_evaluation_after_the_batch_it_is_in() -> None:
    run = Run()
    held_out = evaluation_batches(random_rows(LENGTHS), 16, 1, "packed", 0)
    computed = []
    with Workers(1) as workers:

        def stop(module: torch.nn.Module, inputs: object) -> None:
            computed.append(1)
            workers.are_stopping.set()

        run.model.hf.get_submodule(run.model.anatomy.trunk).register_forward_pre_hook(stop)
        held_out_loss(run.model, SFT(), held_out, run.attachment.adapter, workers)
    assert len(computed) == 1 < len(held_out)
