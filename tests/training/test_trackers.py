"""Trackers: what they are handed arrives, and a missing library is an error with a mend."""

from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.training.trackers import numbers_of, open_trackers

METRICS = {"step": 3, "loss": 1.5, "lr": 1e-4, "learned_tokens": 7, "note": "text"}


def test_numbers_leave_out_the_step_and_what_is_no_number():
    assert numbers_of(METRICS) == {"loss": 1.5, "lr": 1e-4, "learned_tokens": 7.0}


def test_losses_by_task_are_numbers_of_their_own():
    told = {**METRICS, "loss_by_task": {"a": 1.0, "b": 2}, "validation_loss_by_task": {"a": 3.0}}
    assert numbers_of(told) == numbers_of(METRICS) | {"loss/a": 1.0, "loss/b": 2.0, "validation_loss/a": 3.0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_holds_every_number_of_every_step(tmp_path: Path):
    (tracker,) = open_trackers(("tensorboard",), tmp_path, {})
    for step in (1, 2):
        tracker.log(step, numbers_of({**METRICS, "loss": 2.0 / step}))
    tracker.close()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "learned_tokens"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_each_step_once_after_a_run_went_on_from_an_earlier_one(tmp_path: Path):
    for steps_before, steps in ((0, (1, 2, 3)), (1, (2, 3))):
        (tracker,) = open_trackers(("tensorboard",), tmp_path, {}, steps_before)
        for step in steps:
            tracker.log(step, {"loss": 10.0 * steps_before + step})
        tracker.close()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 12.0), (3, 13.0)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_without_its_library_is_refused_before_training(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(RecipeError) as caught:
        open_trackers((name,), tmp_path, {})
    assert caught.value.field == "training.trackers"
    assert f"luthier[{name}]" in caught.value.mend
