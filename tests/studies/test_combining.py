"""Adapters of several runs made into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from near import assert_near
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file
from tiny_model import write_tiny_model
from tiny_runs import begin, nothing, recipe_values, write_rows
from transformers import AutoModelForCausalLM

from luthier.errors import RecipeError, UsageError
from luthier.ops.combining import trim
from luthier.recipe.loading import recipe_of_run
from luthier.studies.combining import Combined, combine_runs
from luthier.studies.merge_sources import Source, read_source


def run_of(folder: Path, model: Path, **method: Any) -> Path:
    """A finished run of the tiny model."""
    folder.mkdir()
    begin(recipe_values(model, write_rows(folder / "rows.jsonl", 24, len(str(method))), method=method), folder / "run")
    return folder / "run"


def combined(runs: list[tuple[Path, float]], out: Path, **wanted: Any) -> Combined:
    return combine_runs([Source(run, recipe_of_run(run), weight) for run, weight in runs], out, nothing, **wanted)


def updates_in(folder: Path, scale: float) -> dict[str, torch.Tensor]:
    """s · B A of every layer in an adapter folder."""
    tensors = load_file(folder / "adapter_model.safetensors")
    names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    return {name: scale * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"] for name in names}


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs: rank 2 at all layers, and rank 3 at the queries and keys."""
    folder = tmp_path_factory.mktemp("pair")
    one = run_of(folder / "one", tiny_model, rank=2, alpha=2)
    other = run_of(folder / "other", tiny_model, rank=3, alpha=3, targets=["q_proj", "k_proj"])
    return one, other


def test_the_linear_sum_is_exact_where_both_adapt_and_where_only_one_does(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    result = combined([(pair[0], 0.5), (pair[1], 2.0)], tmp_path / "sum")
    one, other = updates_in(pair[0] / "adapter", 1.0), updates_in(pair[1] / "adapter", 1.0)
    made = updates_in(tmp_path / "sum", 1.0)
    assert set(made) == set(one)
    for name, update in made.items():
        assert_near(update, 0.5 * one[name] + 2.0 * other.get(name, torch.zeros(())))
    assert set(result.ranks.values()) == {2, 5}
    assert result.relative_error == pytest.approx(0, abs=1e-6)


def test_at_a_smaller_rank_the_error_is_the_energy_left_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = combined([(pair[0], 1.0), (pair[1], 1.0)], tmp_path / "svd", how="svd", rank=2)
    one, other = updates_in(pair[0] / "adapter", 1.0), updates_in(pair[1] / "adapter", 1.0)
    lost = whole = 0.0
    for name in one:
        sigma = torch.linalg.svdvals((one[name] + other.get(name, torch.zeros(()))).double())
        lost, whole = lost + float(sigma[2:].square().sum()), whole + float(sigma.square().sum())
    assert result.relative_error == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
    assert set(result.ranks.values()) == {2}


def test_a_ties_merge_of_runs_is_ties_of_what_each_changed_by_its_weight(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """As `peft` computes it of the layers' whole updates. At the full rank nothing is left out."""
    result = combined([(pair[0], 0.5), (pair[1], 2.0)], tmp_path / "ties", how="ties", density=0.25, rank=32)
    assert result.relative_error == pytest.approx(0, abs=1e-5)
    one, other = updates_in(pair[0] / "adapter", 0.5), updates_in(pair[1] / "adapter", 2.0)
    made = updates_in(tmp_path / "ties", 1.0)
    assert set(made) == set(one)
    for name, update in made.items():
        changes = [each[name] for each in (one, other) if name in each]
        assert_near(update, merge_utils.ties(changes, torch.ones(len(changes)), 0.25))


@pytest.mark.parametrize("how", ["ties", "dare"])
def test_sparse_rules_give_an_adapter_of_the_largest_rank_and_say_how_far_off_it_is(
    how: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    result = combined([(pair[0], 1.0), (pair[1], 1.0)], tmp_path / how, how=how, density=0.5)
    assert set(result.ranks.values()) == {2, 3}
    assert 0 < result.relative_error < 1


def test_runs_of_different_bases_are_not_combined(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    run = run_of(tmp_path / "run", other, rank=2)
    with pytest.raises(RecipeError, match="same base"):
        combined([(pair[0], 1.0), (run, 1.0)], tmp_path / "out")


def test_one_run_alone_and_a_folder_that_is_there_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to combine"):
        combined([(pair[0], 1.0)], tmp_path / "out")
    with pytest.raises(UsageError, match="already"):
        combined([(pair[0], 1.0), (pair[1], 1.0)], tmp_path)


def test_an_adapter_that_does_more_than_change_weights_is_refused(
    pair: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    other = run_of(tmp_path / "other", tiny_model, kind="loreft", rank=2)
    with pytest.raises(RecipeError, match="loreft"):
        combined([(pair[0], 1.0), (other, 1.0)], tmp_path / "out")


def test_a_fully_tuned_run_is_pointed_to_shrink(pair: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    full = run_of(tmp_path / "full", tiny_model, kind="full", rank=None)
    with pytest.raises(RecipeError, match="no adapter") as caught:
        combined([(pair[0], 1.0), (full, 1.0)], tmp_path / "out")
    assert "luthier shrink" in caught.value.mend


def test_pruning_keeps_the_largest_entries_of_each_update(pair: tuple[Path, Path], tmp_path: Path) -> None:
    combined([(pair[0], 1.0), (pair[1], 1.0)], tmp_path / "pruned", how="prune", density=0.2, rank=32)
    one, other = updates_in(pair[0] / "adapter", 1.0), updates_in(pair[1] / "adapter", 1.0)
    for name, update in updates_in(tmp_path / "pruned", 1.0).items():
        expected = sum(trim(each[name], 0.2) for each in (one, other) if name in each)
        assert_near(update, expected)


def saved_by_peft(model: Path, config: PeftConfig, folder: Path) -> Path:
    """An adapter of random numbers that Luthier had no part in."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return folder


def test_adapters_that_peft_saved_are_combined_with_those_of_runs_and_with_each_other(
    pair: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    theirs = read_source(str(saved_by_peft(tiny_model, config, tmp_path / "peft")), tmp_path, 2.0)
    assert theirs.recipe is None
    run = Source(pair[0], recipe_of_run(pair[0]), 0.5)
    combine_runs([run, theirs], tmp_path / "sum", nothing)
    one, other = updates_in(pair[0] / "adapter", 1.0), updates_in(tmp_path / "peft", 2.0)
    for name, update in updates_in(tmp_path / "sum", 1.0).items():
        assert_near(update, 0.5 * one[name] + 2.0 * other.get(name, torch.zeros(())))
    combine_runs([theirs, Source(theirs.folder, None, 1.0)], tmp_path / "both", nothing)
    made = updates_in(tmp_path / "both", 1.0)
    assert set(made) == set(other)
    for name, update in made.items():
        assert_near(update, 3.0 * other[name])


def test_adapters_from_elsewhere_of_another_base_or_kind_and_models_are_refused(
    pair: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    run = Source(pair[0], recipe_of_run(pair[0]))
    scales = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    with pytest.raises(RecipeError, match="of type 'IA3'"):
        combine_runs(
            [run, Source(saved_by_peft(tiny_model, scales, tmp_path / "ia3"), None)], tmp_path / "out", nothing
        )
    strange = saved_by_peft(tiny_model, LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "strange")
    file = strange / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "some/other"}))
    with pytest.raises(RecipeError, match="was trained on some/other") as caught:
        combine_runs([run, Source(strange, None)], tmp_path / "out", nothing)
    assert "base_model_name_or_path" in caught.value.mend
    with pytest.raises(RecipeError, match="is a model"):
        combine_runs([run, Source(tiny_model, None)], tmp_path / "out", nothing)
    assert not (tmp_path / "out").exists()
