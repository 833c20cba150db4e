"""Runs over a base in few bits, from the recipe's one line to the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import begin, course, nothing, one_thread, recipe_values, trained_files, write_rows

from luthier.errors import RecipeError
from luthier.models.anatomy import weight_of
from luthier.models.language_model import LanguageModel
from luthier.quantization.packed import QuantizedLinear
from luthier.recipe import make_recipe
from luthier.tuned import load_base, load_run


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows to learn from."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 12)


def packed_layers(model: LanguageModel) -> list[QuantizedLinear]:
    """The layers over packed weights."""
    return [module for module in model.hf.modules() if isinstance(module, QuantizedLinear)]


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "mxfp4"])
def test_one_line_in_the_recipe_is_all_it_takes(kind: str, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    said: list[str] = []
    values = recipe_values(tiny_model, rows, quantization={"kind": kind}, data={"validation": str(rows)})
    values["training"] |= {"evaluate_every": 2, "steps": 12}
    begin(values, tmp_path / "run", announce=said.append)
    assert any(kind in sentence and "bits each" in sentence for sentence in said)
    losses = [line["validation_loss"] for line in course(tmp_path / "run") if "validation_loss" in line]
    assert losses[-1] < losses[0]
    tuned = load_run(tmp_path / "run", nothing)
    assert len(packed_layers(tuned)) == len(tuned.anatomy.linears)
    assert tuned.anatomy.linears


def test_layers_that_train_are_not_quantized_and_the_whole_model_is_written_unpacked(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    method = {"kind": "top-layers", "rank": None, "num_layers": 1}
    values = recipe_values(tiny_model, rows, quantization={"kind": "nf4"}, method=method, training={"peak_lr": 0.001})
    begin(values, tmp_path / "run", announce=said.append)
    base, tuned = load_base(tmp_path / "run", nothing), load_run(tmp_path / "run", nothing)
    top = base.anatomy.layers[-1]
    assert {layer.is_transposed for layer in packed_layers(base)} == {False}
    assert {name for name, module in base.hf.named_modules() if isinstance(module, QuantizedLinear)} == (
        set(base.anatomy.linears) - set(top.linears)
    )
    assert packed_layers(tuned) == []
    for name in base.anatomy.linears:
        weights = [weight_of(model.hf.get_submodule(name)) for model in (base, tuned)]
        assert torch.equal(*weights) == (name not in top.linears)


def test_evaluations_in_between_change_nothing(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    values = recipe_values(tiny_model, rows, quantization={"kind": "nf4"})
    begin(values, tmp_path / "without")
    values["data"]["validation"] = str(rows)
    values["training"]["evaluate_every"] = 1
    begin(values, tmp_path / "with")
    assert trained_files(tmp_path / "with") == trained_files(tmp_path / "without")


def test_recomputing_layers_changes_nothing_but_the_memory(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    values = recipe_values(tiny_model, rows, quantization={"kind": "nf4"}, method={"dropout": 0.3})
    begin(values, tmp_path / "kept")
    values["training"]["gradient_checkpointing"] = True
    begin(values, tmp_path / "recomputed")
    kept, recomputed = ([line["loss"] for line in course(tmp_path / name)] for name in ("kept", "recomputed"))
    assert recomputed == pytest.approx(kept, rel=1e-6)


def test_a_run_over_four_bits_learns_nearly_what_one_over_the_whole_base_does(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    losses = []
    for name, parts in (("whole", {}), ("packed", {"quantization": {"kind": "nf4"}})):
        values = recipe_values(tiny_model, rows, **parts)
        values["training"]["steps"] = 20
        begin(values, tmp_path / name)
        losses.append(course(tmp_path / name)[-1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(
    ("quantization", "method", "field", "words"),
    [
        ({"kind": "nf3"}, {}, "quantization.kind", "nf4"),
        ({"block": 48}, {}, "quantization.block", "Use one of 32, 64"),
        ({"kind": "int8", "block": 64}, {}, "quantization.block", "scales of its own form"),
        ({"kind": "mxfp4", "double": True}, {}, "quantization.double", "scales of its own form"),
        ({"compute": "int4"}, {}, "quantization.compute", "fp32"),
        ({"bits": 4}, {}, "quantization.bits", "no field"),
        ({}, {"kind": "full", "rank": None}, "quantization", "trains the base's own weights"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(
    quantization: dict[str, Any], method: dict[str, Any], field: str, words: str, tiny_model: Path, rows: Path
) -> None:
    values = recipe_values(tiny_model, rows, quantization=quantization, method=method)
    with pytest.raises(RecipeError) as refused:
        make_recipe(values)
    assert refused.value.field == field
    assert words in f"{refused.value.found} {refused.value.mend}"


def test_a_norm_cannot_be_quantized(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    values = recipe_values(tiny_model, rows, quantization={"targets": ["input_layernorm"]})
    with pytest.raises(RecipeError, match="input_layernorm") as refused:
        begin(values, tmp_path / "run")
    assert refused.value.field == "quantization.targets"
