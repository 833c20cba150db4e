"""Models of several runs made into one: the mean, the arc between two, the base and what each run changed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from near import assert_near
from safetensors.torch import load_file
from tiny_experts import write_tiny_experts
from tiny_model import write_tiny_model
from tiny_runs import begin, nothing, one_thread, recipe_values, write_rows

from luthier.errors import RecipeError, UsageError
from luthier.ops.combining import slerp
from luthier.recipe.loading import recipe_of_run
from luthier.studies.merge_sources import Source, read_source
from luthier.studies.model_merging import ModelHow, merge_models


def tuned(model: Path, folder: Path, seed: int) -> Path:
    rows = write_rows(folder / f"{seed}.jsonl", 12, seed)
    with one_thread():
        values = recipe_values(model, rows, method={"kind": "full", "rank": None}, training={"peak_lr": 0.003})
        begin({**values, "seed": seed}, folder / f"run-{seed}")
    return folder / f"run-{seed}"


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("full")
    return tuned(tiny_model, folder, 1), tuned(tiny_model, folder, 50)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def merged(pair: tuple[Path, Path], shares: tuple[float, float], out: Path, how: ModelHow) -> dict[str, torch.Tensor]:
    sources = [Source(run, recipe_of_run(run), share) for run, share in zip(pair, shares, strict=True)]
    result = merge_models(sources, out, nothing, how=how)
    assert result.num_weights == sum(tensor.numel() for tensor in weights(out).values())
    return weights(out)


def test_linear_is_the_mean_by_the_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (weights(run / "model") for run in pair)
    for name, tensor in merged(pair, (1.0, 3.0), tmp_path / "out", "linear").items():
        assert_near(tensor, 0.25 * one[name] + 0.75 * other[name], 1e-6)


def test_task_arithmetic_adds_each_change_to_the_base(
    pair: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    base, one, other = weights(tiny_model), *(weights(run / "model") for run in pair)
    for name, tensor in merged(pair, (0.7, -0.4), tmp_path / "out", "task-arithmetic").items():
        assert_near(tensor, base[name] + 0.7 * (one[name] - base[name]) - 0.4 * (other[name] - base[name]), 1e-5)


def test_slerp_goes_along_the_arc_of_each_tensor(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = (weights(run / "model") for run in pair)
    for name, tensor in merged(pair, (1.0, 3.0), tmp_path / "out", "slerp").items():
        assert_near(tensor, slerp(one[name], other[name], 0.75), 1e-6)


def test_halfway_between_two_right_angles_is_forty_five_degrees_and_no_shorter() -> None:
    found = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
    assert found.tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    same = torch.randn(5)
    assert_near(slerp(same, 2 * same, 0.5), 1.5 * same, 1e-6)


def test_model_folders_are_merged_like_the_runs_that_they_came_from(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folders = [read_source(str(run / "model"), tmp_path, share) for run, share in zip(pair, (1.0, 3.0), strict=True)]
    assert all(source.recipe is None and source.is_model for source in folders)
    expected = merged(pair, (1.0, 3.0), tmp_path / "runs", "linear")
    merge_models(folders, tmp_path / "folders", nothing)
    for name, tensor in weights(tmp_path / "folders").items():
        assert_near(tensor, expected[name], 0)
    with pytest.raises(UsageError, match="no run among these"):
        merge_models(folders, tmp_path / "out", nothing, how="task-arithmetic")
    expected = merged(pair, (1.0, 3.0), tmp_path / "changes", "task-arithmetic")
    run = Source(pair[0], recipe_of_run(pair[0]), 1.0)
    merge_models([folders[1], run], tmp_path / "mixed", nothing, how="task-arithmetic")
    for name, tensor in weights(tmp_path / "mixed").items():
        assert_near(tensor, expected[name])


def test_models_with_other_tokens_are_not_merged(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    values = json.loads(file.read_text())
    ids = values["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(values))
    with pytest.raises(RecipeError, match="other tokens"):
        merge_models([Source(tiny_model, None), Source(tmp_path / "other", None)], tmp_path / "out", nothing)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_the_experts_of_mixtures_are_merged_too(family: str, tmp_path: Path) -> None:
    base = write_tiny_experts(tmp_path / "base", family=family)
    runs = tuned(base, tmp_path, 1), tuned(base, tmp_path, 50)
    one, other = (weights(run / "model") for run in runs)
    experts = [name for name in one if "experts" in name]
    assert experts
    assert all(not torch.equal(one[name], other[name]) for name in experts)
    for name, tensor in merged(runs, (1.0, 3.0), tmp_path / "mean", "linear").items():
        assert_near(tensor, 0.25 * one[name] + 0.75 * other[name], 1e-6)
    for name, tensor in merged(runs, (0.0, 1.0), tmp_path / "end", "slerp").items():
        assert_near(tensor, other[name], 1e-6)


def test_what_cannot_become_one_model_is_refused(pair: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    sources = [Source(run, recipe_of_run(run)) for run in pair]
    with pytest.raises(UsageError, match="between two models"):
        merge_models([*sources, sources[0]], tmp_path / "out", nothing, how="slerp")
    with pytest.raises(UsageError, match="shares"):
        merge_models([Source(each.folder, each.recipe, -1.0) for each in sources], tmp_path / "out", nothing)
    (tmp_path / "other").mkdir()
    strange = tuned(write_tiny_model(tmp_path / "base", intermediate_size=48), tmp_path / "other", 2)
    with pytest.raises(RecipeError, match="same base model"):
        merge_models([sources[0], Source(strange, recipe_of_run(strange))], tmp_path / "out", nothing)
    assert not (tmp_path / "out").exists()
