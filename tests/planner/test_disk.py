"""What a run leaves on the disk is planned: checkpoints, what frozen layers give, a state in files, rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from planner.test_trace import ROWS, WIDE
from tiny_runs import recipe_values
from transformers import AutoConfig

from luthier.planner.alone import trace_all
from luthier.planner.disk import disk_of, line_bytes
from luthier.planner.request import imagined_rows, work_of
from luthier.planner.trace import STATE, Trace
from luthier.recipe import make_recipe
from luthier.rlhf.samples import Sample

REWARDS = [{"grader": {"type": "length", "most": 9}}]


def planned(**parts: Any) -> tuple[dict[str, int], Trace]:
    recipe = make_recipe(recipe_values(Path("model"), ROWS, **parts))
    config = AutoConfig.for_model(**WIDE)
    one = work_of(recipe, config, imagined_rows(recipe, config), torch.device("cpu"))
    (found,) = trace_all([one])
    assert isinstance(found, Trace), found
    return dict(disk_of(recipe, one, found, on_cpu=True)), found


def test_what_frozen_layers_give_is_kept_for_later_epochs_where_it_may_be() -> None:
    top = {"method": {"kind": "top-layers", "rank": None, "num_layers": 1}}
    several = {"steps": None, "epochs": 2.0}
    states = 4 * 192 * 64 * 4  # four rows of 192 tokens, each as 64 numbers in fp32
    assert planned(**top, training=several)[0]["trunk cache"] == states
    half = planned(**top, training={**several, "trunk_cache_dtype": "bf16"})
    assert half[0]["trunk cache"] == states // 2
    for training in ({**several, "epochs": 1.0}, {**several, "trunk_cache_gb": states / 2e9}):
        assert "trunk cache" not in planned(**top, training=training)[0]
    assert "trunk cache" not in planned(training=several)[0]  # LoRA trains in every layer


def test_a_paged_state_lies_in_files_of_its_own_beside_those_of_checkpoints() -> None:
    disk, found = planned(training={"optimizer": "paged-adamw"})
    assert disk["optimizer state in files"] == found.standing[STATE] > 0
    assert "optimizer state in files" not in planned()[0]


def test_rollouts_are_counted_roughly_as_they_are_written() -> None:
    said = np.random.default_rng(0).normal(-1.5, 1, 40).astype(np.float32)
    text = "and so the answer goes on and on " * 5
    sample = Sample(
        3, 1, text, text, tuple(range(1000, 1040)), "stop", 2, said, reward=0.5, parts={"length": 1.0}, old_T=said,
        reference_T=said,
    )  # fmt: skip
    assert line_bytes(40, 40, 3) == pytest.approx(len(sample.line().encode()), rel=0.25)
    objective = {"kind": "grpo", "rewards": REWARDS, "num_answers": 3, "max_new_tokens": 16}
    disk, found = planned(objective=objective)
    assert found.num_steps == 6
    assert disk["rollouts, roughly"] == 6 * 4 * 3 * line_bytes(192 - 16, 16, 2)
