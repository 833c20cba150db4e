"""Runs over a base in few bits, from the recipe's one line to the tuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from models.rows import random_rows
from near import assert_apart, assert_near
from tiny_gguf import write_tiny_gguf
from tiny_runs import (
    Cut,
    begin,
    course,
    cut_after,
    go_on,
    nothing,
    one_thread,
    outcome,
    recipe_values,
    trained_files,
    write_rows,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.models.anatomy import weight_of
from luthier.models.language_model import LanguageModel
from luthier.quantization.packed import QuantizedLinear
from luthier.recipe import make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.tuned import load_at_step, load_base, load_merged, load_run


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows to learn from."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 12)


def assert_learns_and_resumes_alike(values: dict[str, Any], folder: Path, cut_at: int) -> None:
    """A run learns, and one that is cut after a step and resumed ends in the same bits; the unbroken one stays in `whole`."""
    begin(values, folder / "whole")
    with pytest.raises(Cut):
        begin(values, folder / "cut", cut_after(cut_at))
    go_on(folder / "cut")
    assert outcome(folder / "cut") == outcome(folder / "whole")
    losses = [line["loss"] for line in course(folder / "whole")]
    assert losses[-1] < losses[0]


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


def test_a_norm_cannot_be_quantized_and_the_mend_names_what_can(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    values = recipe_values(tiny_model, rows, quantization={"targets": ["input_layernorm"]})
    with pytest.raises(RecipeError, match=r"quantization\.targets may name is called 'input_layernorm'") as refused:
        begin(values, tmp_path / "run")
    assert refused.value.field == "quantization.targets"
    said, _, named = refused.value.mend.partition("some of: ")
    assert said == "Set quantization.targets to all-linear or to "
    names = named.rstrip(".").split(", ")
    assert {"q_proj", "down_proj"} <= set(names)
    assert "input_layernorm" not in names
    values["quantization"]["targets"] = ["q_proj", "down_proj"]
    begin(values, tmp_path / "run")
    assert len(packed_layers(load_base(tmp_path / "run", nothing))) == 4


@pytest.mark.parametrize(
    ("quantization", "method", "field"),
    [
        ({"skip": ["self_attn.q_proj"], "targets": ["q_proj"]}, {}, "quantization.skip"),
        ({"targets": []}, {}, "quantization.targets"),
        ({}, {"kind": "top-layers", "rank": None, "num_layers": 2}, "quantization"),
    ],
)
def test_a_quantization_that_leaves_every_layer_whole_is_refused(
    quantization: dict[str, Any], method: dict[str, Any], field: str, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    values = recipe_values(tiny_model, rows, quantization=quantization, method=method)
    with pytest.raises(RecipeError, match="No layer is quantized") as refused:
        begin(values, tmp_path / "run")
    assert refused.value.field == field
    assert "eave quantization out" in refused.value.mend
    begin({key: value for key, value in values.items() if key != "quantization"}, tmp_path / "run")


def test_pissa_over_nf4_trains_is_resumed_to_the_same_bits_and_merges(
    tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    values = recipe_values(
        tiny_model, rows, quantization={"kind": "nf4"}, method={"kind": "pissa"}, training={"peak_lr": 0.003}
    )
    assert_learns_and_resumes_alike(values, tmp_path, cut_at=4)
    tuned = load_run(tmp_path / "whole", nothing)
    merged = load_merged(tmp_path / "whole", recipe_of_run(tmp_path / "whole"), nothing)
    assert packed_layers(merged) == []
    batch = collate(random_rows((9, 14, 5)), tuned.layout, pad_id=tuned.pad_id)
    learned = tuned.forward(batch, "default").logprob_N.detach()
    assert_near(merged.forward(batch).logprob_N.detach(), learned, 1e-4)
    assert_apart(tuned.forward(batch).logprob_N.detach(), learned, 1e-3)


# ── bases whose full weights are not there ──────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def in_few_bits(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model as it is published once bitsandbytes has quantized it."""
    folder = tmp_path_factory.mktemp("quantized") / "model"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    hf = AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=config, device_map="cpu")
    hf.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["Q4_K", "Q6_K"])
def in_blocks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .gguf file whose words are bytes, with a template for chats."""
    file = tmp_path_factory.mktemp("blocks") / "tiny.gguf"
    words = ["<|end|>", *sorted(ByteLevel.alphabet()), "he"]
    return write_tiny_gguf(
        file, words, ["h e"], bos=0, eos=0, chat_template=CHAT, width=256, context=512, format_=Type[request.param]
    )


CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
LOFTQ = {"kind": "loftq", "rank": 2}


def followed(values: dict[str, Any], mend: dict[str, Any], folder: Path) -> None:
    """Do what a mend said: from there the run goes to its end."""
    changed = {**values, **mend, "training": {**values["training"], "steps": 1}}
    begin({key: value for key, value in changed.items() if value is not None}, folder)


def test_a_method_that_needs_full_weights_leads_out_of_a_base_that_comes_quantized(
    in_few_bits: Path, tiny_model: Path, rows: Path, tmp_path: Path
) -> None:
    values = recipe_values(in_few_bits, rows, method=LOFTQ)
    with pytest.raises(RecipeError, match="begins at what a base loses") as refused:
        make_recipe(values)
    assert "over the unquantized model, or set method.kind to lora" in refused.value.mend
    values["quantization"] = {"kind": "nf4"}
    with pytest.raises(RecipeError, match="comes in few bits, but loftq begins at") as refused:
        begin(values, tmp_path / "run")
    assert refused.value.field == "method.kind"
    assert "Name the unquantized model" in refused.value.mend
    assert "set method.kind to lora and leave quantization out" in refused.value.mend
    followed(values, {"method": {"kind": "lora", "rank": 2}, "quantization": None}, tmp_path / "lora")
    followed(values, {"model": str(tiny_model)}, tmp_path / "whole")


@pytest.mark.parametrize("kind", ["gguf", "nf4"])
def test_a_method_that_needs_full_weights_leads_out_of_a_gguf_file(
    kind: str, in_blocks: Path, rows: Path, tmp_path: Path
) -> None:
    values = blocks_values(in_blocks, rows, method=LOFTQ, quantization={"kind": kind})
    with pytest.raises(RecipeError, match="comes in few bits, but loftq begins at") as refused:
        begin(values, tmp_path / "run")
    assert refused.value.field == "method.kind"
    assert "set method.kind to lora and set quantization.kind to gguf" in refused.value.mend
    followed(values, {"method": {"kind": "lora", "rank": 2}, "quantization": {"kind": "gguf"}}, tmp_path / "lora")


def test_pissa_over_a_base_that_comes_quantized_begins_at_it_unpacked(
    in_few_bits: Path, rows: Path, tmp_path: Path
) -> None:
    values = recipe_values(in_few_bits, rows, method={"kind": "pissa"}, training={"steps": 2, "peak_lr": 1e-9})
    begin(values, tmp_path / "run")
    base, tuned = load_base(tmp_path / "run", nothing), load_run(tmp_path / "run", nothing)
    batch = collate(random_rows((9, 14)), base.layout, pad_id=base.pad_id)
    assert_near(tuned.forward(batch, "default").logprob_N.detach(), base.forward(batch).logprob_N.detach(), 1e-4)
    values["quantization"] = {"kind": "nf4"}
    with pytest.raises(RecipeError, match="comes quantized already") as refused:
        begin(values, tmp_path / "twice")
    assert "Leave quantization out" in refused.value.mend


def blocks_values(file: Path, rows: Path, **parts: Any) -> dict[str, Any]:
    """A recipe over a .gguf file."""
    data = {"max_length": 256}
    return recipe_values(file, rows, data=data, **parts, training={"tokens_per_micro_batch": 512, "rows_per_step": 2})


def test_a_run_over_a_files_own_blocks_is_resumed_to_the_same_bits_and_loaded(
    in_blocks: Path, rows: Path, tmp_path: Path
) -> None:
    values = blocks_values(in_blocks, rows, quantization={"kind": "gguf"})
    values["training"] |= {"steps": 4}
    assert_learns_and_resumes_alike(values, tmp_path, cut_at=3)
    tuned = load_run(tmp_path / "whole", nothing)
    assert len(packed_layers(tuned)) == len(tuned.anatomy.linears) == 7
    kinds = {layer.packed.kind for layer in packed_layers(tuned)}
    assert kinds in ({"q4_k"}, {"q6_k"})
    batch = collate(random_rows((9, 14)), tuned.layout, pad_id=tuned.pad_id)
    last = load_at_step(tmp_path / "whole", 4, nothing)
    assert_near(
        last.forward(batch, "default").logprob_N.detach(), tuned.forward(batch, "default").logprob_N.detach(), 1e-6
    )
    assert_apart(tuned.forward(batch).logprob_N.detach(), tuned.forward(batch, "default").logprob_N.detach(), 1e-3)
