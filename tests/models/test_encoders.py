"""Encoders and heads for classes: the same logits as plain transformers, what is new in a head, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.rows import class_rows, plain_class_logprobs
from models.tiny import CLASSES, ENCODERS, NAMES, PLAIN, TYPED, plain_model, tiny_model, tiny_tokenizer
from models.tuned import LENGTHS, plain_attention, quiet
from near import assert_apart, assert_near
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.errors import DataError, RecipeError
from luthier.methods import PromptTuning
from luthier.models.families import family_of
from luthier.models.heads import ClassHead
from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings

HEADED = tuple(name for name in NAMES if not name.startswith("granite"))


def class_logits(model: LanguageModel, lengths: tuple[int, ...] = LENGTHS) -> torch.Tensor:
    """The logits of all classes for rows of these lengths in one batch."""
    batch = collate(class_rows(lengths, model.anatomy.family.pooled), model.layout, pad_id=model.pad_id)
    outputs = model.forward(batch)
    return outputs.logits_NC


@pytest.mark.parametrize("name", [*ENCODERS, *HEADED])
def test_a_batch_of_texts_gives_each_class_what_plain_transformers_gives_a_text_alone(name: str) -> None:
    rows = class_rows(LENGTHS, family_of(tiny_model(name).hf.config.model_type).pooled)
    expected = plain_class_logprobs(plain_model(name, plain_attention(name), purpose="classes"), rows)
    for fast in (FastModel(), PLAIN):
        model = tiny_model(name, fast, purpose="classes")
        assert_near(model.forward(collate(rows, model.layout, pad_id=0)).logprob_N, expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_padded_rows_have_the_logits_of_transformers_with_the_same_padding(name: str) -> None:
    plain, model = plain_model(name), tiny_model(name)
    batch = collate(class_rows(LENGTHS, "first"), "bucketed", pad_id=model.pad_id)
    inputs = {"input_ids": batch.tokens_BT, "attention_mask": batch.mask_BT.long()}
    if plain.config.model_type in TYPED:
        inputs["token_type_ids"] = batch.types_BT
    if name == "roberta":  # transformers finds paddings by their token, and so counts positions
        assert not bool((batch.tokens_BT[batch.mask_BT] == 1).any())
        inputs["input_ids"] = batch.tokens_BT.masked_fill(~batch.mask_BT, 1)
    assert_near(class_logits(model), plain(**inputs).logits)


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_a_second_text_is_told_apart_by_its_token_types(name: str) -> None:
    model = tiny_model(name)
    rows = class_rows(LENGTHS, "first")
    batch = collate(rows, "bucketed", pad_id=0)
    assert batch.types_BT is not None
    with_types = model.forward(batch).logprob_N
    without = model.forward(collate([with_none(row) for row in rows], "bucketed", pad_id=0)).logprob_N
    assert_near(with_types[::2], without[::2], 1e-6)
    assert_apart(with_types[1::2], without[1::2])


def with_none(row):
    """The row as one text."""
    return type(row)(**{**vars(row), "types_P": None})


@pytest.mark.parametrize("name", ENCODERS)
def test_the_anatomy_names_every_part_of_an_encoder(name: str) -> None:
    model = tiny_model(name)
    modules = dict(model.hf.named_modules())
    anatomy = model.anatomy
    linears = {key for key, module in modules.items() if isinstance(module, nn.Linear)}
    assert set(anatomy.linears) | set(anatomy.head_linears) == linears
    assert len(anatomy.linears) == (8 if name.startswith("modernbert") else 12)
    assert len(anatomy.head_linears) == 2
    trunk, stack, (down, out, attention_norm, feedforward_norm) = PARTS[name.partition("-")[0]]
    norms = {key for key, module in modules.items() if isinstance(module, nn.LayerNorm)}
    assert set(anatomy.norms) == {key for key in norms if key.startswith(f"{trunk}.")}
    assert set(anatomy.hidden_norms) == set(anatomy.norms)
    assert anatomy.norms[0].startswith(f"{trunk}.embeddings.")
    assert anatomy.norms_first == (trunk == "model")
    assert anatomy.final_norm == ("model.final_norm" if trunk == "model" else None)
    assert anatomy.purpose == "classes"
    layer, prefix = anatomy.layers[1], f"{trunk}.{stack}.1."
    assert layer.roles["down"] == prefix + down
    assert layer.attention_out == prefix + out
    assert layer.attention_norm == prefix + attention_norm
    assert layer.feedforward_norm == prefix + feedforward_norm
    if trunk == "model":
        assert anatomy.layers[0].attention_norm is None, "an identity stands in its place"


OF_BERT = ("output.dense", "attention.output.dense", "attention.output.LayerNorm", "output.LayerNorm")
PARTS = {
    "bert": ("bert", "encoder.layer", OF_BERT),
    "roberta": ("roberta", "encoder.layer", OF_BERT),
    "distilbert": (
        "distilbert", "transformer.layer", ("ffn.lin2", "attention.out_lin", "sa_layer_norm", "output_layer_norm")
    ),
    "deberta": ("deberta", "encoder.layer", OF_BERT),
    "modernbert": ("model", "layers", ("mlp.Wo", "attn.Wo", "attn_norm", "mlp_norm")),
}  # fmt: skip
"""Trunk, stack, and of a layer: where attention and feed-forward end, and their norms."""


def test_positions_of_roberta_begin_behind_the_padding_token() -> None:
    bert, roberta = tiny_model("bert"), tiny_model("roberta")
    assert (bert.first_position, roberta.first_position) == (0, 2)
    assert bert.context_length == roberta.context_length == 64
    assert class_logits(roberta, (64,)).shape == (1, 3)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_pooled_token_is_the_first_real_one_behind_virtual_ones_and_a_mean_is_over_these(name: str) -> None:
    row = with_placeholders(class_rows((5,), "first")[0], 3)
    assert row.source_N.tolist() == [3]
    model = tiny_model(name)
    PromptTuning(num_virtual_tokens=3).attach(model, "default", seed=0)
    batch = collate([row], "bucketed", pad_id=0)
    hidden_BTD = model.hidden(batch, "default")
    outputs = model.forward(batch, "default")
    own = hidden_BTD[0, 3:].mean(0) if name == "modernbert-mean" else hidden_BTD[0, 3]
    assert_near(outputs.hidden_ND[0], own, 1e-6)


@pytest.mark.parametrize(("name", "told"), [("bert", "at the first virtual token"), ("modernbert-mean", "the mean")])
def test_it_is_said_what_other_tools_read_behind_a_soft_prompt(name: str, told: str, tmp_path: Path) -> None:
    said: list[str] = []
    PromptTuning(num_virtual_tokens=3).attach(tiny_model(name), "default", seed=0).write(tmp_path, said.append)
    assert any(told in sentence for sentence in said)


# ── heads that are new ──────────────────────────────────────────────────────────────────────────────────────────────


def saved(hf: PreTrainedModel, folder: Path) -> ModelSettings:
    hf.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return ModelSettings(name=str(folder), device="cpu")


def masked_model(name: str) -> PreTrainedModel:
    """The encoder as it is published: with a head over words, for masked tokens."""
    config = plain_model(name).config
    masked: PreTrainedModel = AutoModelForMaskedLM.from_config(config)
    return masked


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("bert", ("bert.pooler.dense", "classifier")),
        ("roberta", ("classifier.dense", "classifier.out_proj")),
        ("distilbert", ("pre_classifier", "classifier")),
        ("deberta", ("pooler.dense", "classifier")),
        ("modernbert", ("classifier",)),
        ("llama", ("score",)),
    ],
)
def test_a_head_that_no_file_holds_is_drawn_from_the_seed_and_announced(
    name: str, new: tuple[str, ...], tmp_path: Path
) -> None:
    hf = plain_model("llama") if name == "llama" else masked_model(name)
    settings = saved(hf, tmp_path)
    said: list[str] = []
    first, again, other = (load_model(settings, said.append, head=ClassHead(CLASSES, seed)) for seed in (3, 3, 4))
    assert first.new_head == new
    assert first.classes == CLASSES
    assert "angry, happy, neutral is new, drawn from seed 3" in said[1]
    for layer in new:
        weights = [model.hf.get_submodule(layer).get_parameter("weight") for model in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert 0.01 < float(weights[0].std()) < 0.03


@pytest.mark.parametrize("name", ENCODERS)
def test_a_head_for_the_same_classes_is_kept_and_one_for_others_is_new(name: str, tmp_path: Path) -> None:
    settings = saved(plain_model(name), tmp_path)
    kept = load_model(settings, quiet, head=ClassHead(CLASSES))
    assert kept.new_head == ()
    assert_near(class_logits(kept), class_logits(tiny_model(name)), 1e-6)
    last = ("classifier.dense", "classifier.out_proj") if name == "roberta" else ("classifier",)
    assert load_model(settings, quiet, head=ClassHead(("a", "b", "c"))).new_head == last
    assert load_model(settings, quiet, head=ClassHead(("a", "b"))).new_head == last


def test_a_pooler_that_the_files_hold_is_kept_beside_a_new_classifier(tmp_path: Path) -> None:
    bert = plain_model("bert")
    model = load_model(saved(bert.bert, tmp_path), quiet, head=ClassHead(("a", "b")))
    assert model.new_head == ("classifier",)
    pooler = model.hf.get_parameter("bert.pooler.dense.weight")
    assert torch.equal(pooler, bert.get_parameter("bert.pooler.dense.weight"))


def test_missing_layers_of_the_encoder_are_still_refused(tmp_path: Path) -> None:
    hf = plain_model("bert")
    settings = saved(hf, tmp_path)
    weights = {key: tensor for key, tensor in hf.state_dict().items() if "layer.1.output.dense" not in key}
    hf.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(DataError, match=r"missing: bert\.encoder\.layer\.1\.output\.dense"):
        load_model(settings, quiet, head=ClassHead(CLASSES))


def test_an_encoder_without_classes_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot write") as caught:
        load_model(saved(plain_model("bert"), tmp_path), quiet)
    assert (caught.value.field, "classification" in caught.value.mend) == ("objective.kind", True)


def test_a_family_without_a_head_for_classes_is_refused_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no head that tells classes apart") as caught:
        load_model(saved(plain_model("granite"), tmp_path), quiet, head=ClassHead(CLASSES))
    assert caught.value.field == "objective.kind"
