"""A run's model written for other tools: what they load computes what the run does, and quantizing it again says what it loses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of
from near import assert_near
from tiny_model import write_tiny_model
from tiny_runs import begin, nothing, one_thread, recipe_values, write_rows
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from luthier.errors import RecipeError, UsageError
from luthier.methods import ADAPTER
from luthier.models.anatomy import weight_of
from luthier.quantization.formats import quantize
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe.loading import recipe_of_run
from luthier.studies.exporting import Exported, export_run
from luthier.tuned import load_merged, load_run


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 12)


def tuned(model: Path, rows: Path, folder: Path, **parts: Any) -> Path:
    """A finished run that held its own rows out."""
    with one_thread():
        begin(recipe_values(model, rows, data={"validation": str(rows)}, **parts), folder)
    return folder


def exported(run: Path, out: Path, **settings: Any) -> Exported:
    with one_thread():
        return export_run(run, recipe_of_run(run), out, nothing, **settings)


def logits_of_run(run: Path) -> torch.Tensor:
    model = load_run(run, nothing)
    batch = batch_of([9], model.layout)
    return model.hf.get_submodule("lm_head")(model.hidden(batch, ADAPTER)).detach()


def logits_of_file(out: Path) -> torch.Tensor:
    hf = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    return hf(batch_of([9], "packed").tokens_BT).logits.detach()


@pytest.mark.parametrize("quantization", [None, {"kind": "nf4"}, {"kind": "int8"}], ids=str)
def test_the_merged_model_is_that_of_the_run_over_the_very_base_it_was_trained_on(
    quantization: dict[str, Any] | None, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    parts = {} if quantization is None else {"quantization": quantization}
    run = tuned(tiny_model, rows, tmp_path / "run", **parts)
    result = exported(run, tmp_path / "merged")
    assert_near(logits_of_file(tmp_path / "merged"), logits_of_run(run), 1e-4)
    assert result.losses is not None
    assert result.losses["written"] == pytest.approx(result.losses["run"], abs=1e-5)
    assert result.lost is None
    assert result.num_bytes == (tmp_path / "merged" / "model.safetensors").stat().st_size


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_quantized_again_it_is_what_bitsandbytes_loads_and_what_was_lost_is_told(
    kind: Any, rows: Path, tmp_path: Path
) -> None:
    wide = write_tiny_model(
        tmp_path / "wide", hidden_size=64, intermediate_size=128
    )  # rows of whole blocks: see the page
    run = tuned(wide, rows, tmp_path / "run")
    settings = QuantizationSettings(kind=kind)
    whole = exported(run, tmp_path / "whole")
    result = exported(run, tmp_path / "packed", quantization=settings)
    merged = load_merged(run, recipe_of_run(run), nothing)
    off = energy = 0.0
    with torch.no_grad():
        for name in merged.anatomy.linears:
            weight_OI = weight_of(merged.hf.get_submodule(name)).clone()
            packed_OI = quantize(name, weight_OI, settings).dense(torch.float32)
            off, energy = off + float((weight_OI - packed_OI).square().sum()), energy + float(weight_OI.square().sum())
            weight_of(merged.hf.get_submodule(name)).copy_(packed_OI)
    assert result.lost is not None
    assert result.lost.relative_error == pytest.approx((off / energy) ** 0.5, rel=1e-4)
    assert result.lost.worst_error >= result.lost.relative_error
    assert result.lost.worst in merged.anatomy.linears
    assert result.losses is not None
    assert result.losses["written"] != result.losses["run"]
    assert result.num_bytes < 0.8 * whole.num_bytes
    batch = batch_of([9], merged.layout)
    expected = merged.hf.get_submodule("lm_head")(merged.hidden(batch))
    assert_near(logits_of_file(tmp_path / "packed"), expected, 1e-4 if kind != "int8" else 5e-2)  # it rounds inputs too


def test_a_number_format_may_be_chosen(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = tuned(tiny_model, rows, tmp_path / "run")
    exported(run, tmp_path / "half", dtype="bf16")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in hf.parameters()} == {torch.bfloat16}


def test_a_tuned_base_is_written_too_and_without_held_out_rows_nothing_is_measured(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    with one_thread():
        begin(recipe_values(tiny_model, rows, method={"kind": "full", "rank": None}), tmp_path / "run")
    result = exported(tmp_path / "run", tmp_path / "packed", quantization=QuantizationSettings(kind="nf4"))
    assert result.losses is None
    assert result.lost is not None
    assert 0.02 < result.lost.relative_error < 0.15


def test_what_cannot_be_written_is_refused_before_anything_is(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    prompt = {"kind": "prompt-tuning", "rank": None, "num_virtual_tokens": 3}
    run = tuned(tiny_model, rows, tmp_path / "run", method=prompt)
    with pytest.raises(RecipeError, match="cannot be merged"):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        exported(run, tmp_path / "there")


def test_layers_that_are_stored_turned_round_are_not_quantized_for_bitsandbytes(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model.iterdir():
        if not file.name.startswith(("model", "config", "generation")):
            (base / file.name).write_bytes(file.read_bytes())
    words = AutoModelForCausalLM.from_pretrained(tiny_model).config
    config = GPT2Config(
        vocab_size=words.vocab_size, n_embd=32, n_layer=1, n_head=2, n_positions=256,
        bos_token_id=words.eos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(base)
    run = tuned(base, rows, tmp_path / "run")
    with pytest.raises(RecipeError, match="turned round"):
        exported(run, tmp_path / "packed", quantization=QuantizationSettings(kind="nf4"))
    assert not (tmp_path / "packed").exists()
    assert exported(run, tmp_path / "merged").losses is not None
