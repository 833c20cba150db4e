"""What a run did to the weights, and the same at a smaller rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from near import assert_near
from peft import PeftModel
from safetensors.torch import load_file
from tiny_runs import begin, nothing, recipe_values, write_rows
from transformers import AutoModelForCausalLM

from luthier.errors import RecipeError, UsageError
from luthier.recipe.loading import recipe_of_run
from luthier.studies.inspection import Inspection, Shrunk, inspect_run, shrink_run
from luthier.studies.inspection_plot import grid, write_inspection_plot

FULL = {"kind": "full", "rank": None, "layers": [0, 1]}


def run_of(folder: Path, model: Path, validation: str = "none", **method: Any) -> Path:
    """A finished run of the tiny model."""
    rows = write_rows(folder / "rows.jsonl", 24)
    data = {"validation": str(write_rows(folder / "held.jsonl", 6, 30)) if validation == "some" else "none"}
    begin(recipe_values(model, rows, method=method, data=data), folder / "run")
    return folder / "run"


def inspected(run: Path) -> Inspection:
    return inspect_run(run, recipe_of_run(run), nothing)


def shrunk(run: Path, out: Path, **wanted: Any) -> Shrunk:
    return shrink_run(run, recipe_of_run(run), out, nothing, **wanted)


def test_the_singular_values_are_those_of_scale_times_b_times_a(tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny_model, rank=4, alpha=6)
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    found = inspected(run)
    assert len(found.layers) == len(tensors) // 2 == 14
    for update in found.layers:
        a, b = (tensors[f"base_model.model.{update.name}.lora_{side}.weight"] for side in "AB")
        expected = torch.linalg.svdvals(6 / 4 * b @ a)
        assert_near(update.sigma_K, expected[:4], 1e-4)
        assert update.norm == pytest.approx(float((6 / 4 * b @ a).norm()), rel=1e-4)
        assert 1 <= update.effective_rank <= 4
        assert 1 <= update.rank_for(0.99) <= 4


def test_the_rank_to_keep_is_judged_over_all_layers_together(tiny_model: Path, tmp_path: Path) -> None:
    found = inspected(run_of(tmp_path, tiny_model, rank=4))
    energy = [sum(float(u.sigma_K[:r].double().square().sum()) for u in found.layers) for r in range(1, 5)]
    assert found.rank_to_keep == next(r for r in range(1, 5) if energy[r - 1] >= 0.99 * energy[3])


def test_at_its_own_rank_the_smaller_adapter_is_the_run(tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny_model, validation="some", rank=3)
    result = shrunk(run, tmp_path / "same", rank=3)
    assert result.kept_energy == pytest.approx(1)
    assert result.losses is not None
    assert result.losses["smaller"] == pytest.approx(result.losses["run"], rel=1e-6)
    assert result.losses["base"] != pytest.approx(result.losses["run"], rel=1e-3)
    assert result.num_after == result.num_before


def test_a_smaller_rank_keeps_the_largest_values_and_peft_reads_it(tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny_model, rank=4)
    result = shrunk(run, tmp_path / "small", energy=0.9)
    sigma = {update.name: update.sigma_K for update in inspected(run).layers}
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: module.weight.clone() for name, module in base.named_modules() if name in sigma}
    merged = PeftModel.from_pretrained(base, tmp_path / "small").merge_and_unload()
    for name, rank in result.ranks.items():
        assert float(sigma[name][:rank].square().sum()) >= 0.9 * float(sigma[name].square().sum()) * (1 - 1e-5)
        update = merged.get_submodule(name).weight - before[name]
        assert_near(torch.linalg.svdvals(update)[:rank], sigma[name][:rank], 1e-3)
        assert torch.linalg.matrix_rank(update, rtol=1e-3) <= rank
    assert result.losses is None


def test_a_fully_tuned_model_comes_out_as_a_lora(tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny_model, validation="some", **FULL)
    result = shrunk(run, tmp_path / "lora", rank=32)
    assert result.losses is not None
    assert result.kept_energy == pytest.approx(1)
    base_to_run = result.losses["base"] - result.losses["run"]
    assert result.losses["smaller"] - result.losses["run"] < 0.3 * base_to_run
    assert result.left_out
    assert all("norm" in name for name in result.left_out)


def test_an_adapter_that_does_more_than_change_weights_is_not_taken_for_its_weights(
    tiny_model: Path, tmp_path: Path
) -> None:
    parts = [{"kind": "lora", "rank": 2}, {"kind": "loreft", "rank": 2}]
    run = run_of(tmp_path, tiny_model, kind="stack", rank=None, parts=parts)
    for look in (inspected, lambda run: shrunk(run, tmp_path / "out", rank=1)):
        with pytest.raises(RecipeError, match="more than the linear layers"):
            look(run)


def test_rank_and_energy_exclude_each_other_and_a_folder_is_not_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny_model, rank=2)
    for wanted in ({}, {"rank": 1, "energy": 0.5}):
        with pytest.raises(UsageError, match="either a rank or"):
            shrunk(run, tmp_path / "new", **wanted)
    with pytest.raises(UsageError, match="already"):
        shrunk(run, tmp_path, rank=1)


def test_the_picture_has_a_row_a_layer_and_a_column_a_role(tiny_model: Path, tmp_path: Path) -> None:
    found = inspected(run_of(tmp_path, tiny_model, rank=2))
    roles, layers, values = grid(found, lambda update: update.norm)
    assert layers == ["0", "1"]
    assert set(roles) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for update in found.layers:
        assert values[layers.index(str(update.layer)), roles.index(update.role)] == update.norm
    write_inspection_plot(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
