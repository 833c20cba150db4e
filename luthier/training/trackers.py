"""Writers that carry a run's metrics to other tools: TensorBoard, Weights & Biases, MLflow.

Each library is imported only when a recipe asks for it; none of them is needed for metrics.jsonl.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from luthier.errors import RecipeError


class Tracker(Protocol):
    """Takes a step's numbers."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of one step."""

    def close(self) -> None:
        """Flush what is held."""


def open_trackers(names: Sequence[str], run: Path, settings: Mapping[str, Any], steps_before: int = 0) -> list[Tracker]:
    """The trackers that a recipe names. Raises RecipeError for one whose library is not installed.

    steps_before: where the run goes on; what TensorBoard was told of later steps is taken back.
    """
    openers: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
        "tensorboard": partial(TensorBoard, steps_before=steps_before),
        "wandb": WandB,
        "mlflow": MLflow,
    }
    return [openers[name](run, settings) for name in names]


@contextmanager
def tracking(
    names: Sequence[str], run: Path, settings: Mapping[str, Any], steps_before: int = 0
) -> Iterator[list[Tracker]]:
    """The trackers that a recipe names, closed in the end however that comes; raises as `open_trackers`."""
    trackers = open_trackers(names, run, settings, steps_before)
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a step's metrics, without the step itself."""
    given = {key: float(value) for key, value in metrics.items() if key != "step" and isinstance(value, int | float)}
    for name in ("loss", "validation_loss"):
        given |= {f"{name}/{task}": float(loss) for task, loss in metrics.get(f"{name}_by_task", {}).items()}
    return given


def _library(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise RecipeError(
            f"The recipe asks for the tracker {extra}, whose library is not installed.",
            f"Install it with: pip install 'luthier[{extra}]', or take it out.",
            field="training.trackers",
        ) from error


class TensorBoard:
    """Event files in the run's `tensorboard/` folder."""

    def __init__(self, run: Path, settings: Mapping[str, Any], steps_before: int = 0) -> None:
        _library("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=steps_before + 1 if steps_before else None)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One scalar for each number."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class WandB:
    """A Weights & Biases run of the same name; its own settings decide whether it goes online."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self.session = _library("wandb", "wandb").init(name=run.name, dir=str(run), config=dict(settings))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One history row."""
        self.session.log(dict(numbers), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.session.finish()


class MLflow:
    """An MLflow run of the same name, at the tracking address that MLflow is set to."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self.mlflow = _library("mlflow", "mlflow")
        self.mlflow.start_run(run_name=run.name)
        self.mlflow.log_dict(dict(settings), "recipe.json")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One value of each metric."""
        self.mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()
