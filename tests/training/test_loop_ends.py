"""What ends a run early: no progress, numbers that are not finite, signals, errors."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.tiny import tiny_model
from near import assert_near
from training.runs import Run, same_bits

from luthier.errors import Interrupted, NotFinite
from luthier.methods import Full
from luthier.training.settings import EarlyStopping, TrainingSettings


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

    before = signal.getsignal(signal.SIGINT)
    run = Run(on_step=interrupt, workers=workers)
    with pytest.raises(Interrupted) as stopped:
        run.go()
    assert stopped.value.exit_code == code
    assert [checkpoint.step for checkpoint in run.saved] == [3]
    unbroken, resumed = Run(workers=workers), Run(workers=workers)
    unbroken.go()
    resumed.go(run.saved[-1])
    assert same_bits(resumed.weights(), unbroken.weights())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_is_announced_before_the_evaluation_that_it_waits_for() -> None:
    order: list[str] = []

    def evaluate(run: Run) -> float:
        order.append("evaluated")
        return 1.0

    def interrupt(module: torch.nn.Module, inputs: object) -> None:
        if len(order) == 1 and not asked:
            asked.append(True)
            signal.raise_signal(signal.SIGINT)

    asked: list[bool] = []
    run = Run(evaluate_every=1, evaluate=evaluate, announce=order.append)
    run.model.hf.get_submodule(run.model.anatomy.trunk).register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        run.go()
    first, said, second = order
    assert (first, second) == ("evaluated", "evaluated")
    assert "Stopping once the state is saved" in said


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
