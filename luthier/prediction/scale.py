"""How a reward model's raw scores become the ones that are told: a gain and a bias, kept beside the model.

Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.1: scores of reference answers get mean 0 and standard deviation 1, so
that a penalty's weight means the same whatever the reward model. With gain g = 1 / std and bias b = − g · mean a raw score r is told
as g r + b, cut at ± clip.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from luthier.errors import RecipeError, UsageError
from luthier.faults import setting_fault
from luthier.store.files import write_json
from luthier.types import Settings

FILE = "reward.json"


class Scale(Settings):
    """Gain and bias of a reward model, and what they come from."""

    gain: float = Field(1.0, gt=0.0, description="g: what a raw score is times.")
    bias: float = Field(0.0, description="b: what is added to that.")
    clip: float = Field(10.0, gt=0.0, description="No score is told above this, or below its negative.")
    answers: int = Field(0, ge=0, description="How many answers gain and bias come from; 0: from none.")

    def told(self, raw: Sequence[float]) -> list[float]:
        """Raw scores as they are told."""
        return [max(-self.clip, min(self.clip, self.gain * score + self.bias)) for score in raw]


def scale_of(raw: Sequence[float], clip: float) -> Scale:
    """The scale under which these raw scores have mean 0 and standard deviation 1. Raises UsageError where they are all the same."""
    spread = statistics.pstdev(raw) if raw else 0.0
    if spread == 0:
        raise UsageError(
            f"The scores of {len(raw)} answers do not differ, so there is no scale to take from them.",
            "Give several answers that the reward model tells apart.",
        )
    return Scale(gain=1 / spread, bias=-statistics.fmean(raw) / spread, clip=clip, answers=len(raw))


def write_scale(scale: Scale, folder: Path) -> None:
    """Keep a scale in the folder of the model or adapter that it belongs to."""
    write_json(folder / FILE, scale.model_dump(mode="json"))


def read_scale(folder: Path) -> Scale:
    """The scale that a folder keeps; where it keeps none, one that only cuts. Raises RecipeError or UsageError for what is none."""
    path = folder / FILE
    if not path.is_file():
        return Scale()
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        return Scale.model_validate(values)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecipeError(f"The file is not JSON: {error}.", "Write gain and bias again.", file=str(path)) from error
    except ValidationError as error:
        raise setting_fault(error, f"The scale in {path}", Scale) from error
