"""Encoder-decoders: their anatomy, and the same log-probabilities and gradients as transformers and as each row alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.rows import answers_of, plain_logprobs, random_rows, with_sources
from models.tiny import ENCODER_DECODERS, PLAIN, plain_model, tiny_config, tiny_model
from models.tuned import LENGTHS, random_lora, randomize
from near import assert_all_near, assert_apart, assert_near
from torch import nn

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.methods import BitFit, Full, LNTuning, LoRA, TopLayers
from luthier.models.anatomy import find_targets
from luthier.models.call import Draws
from luthier.models.families import family_of
from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.reading import read_anatomy

READS_SOURCE = ("role:cross_key", "role:cross_value")
HALVES = (slice(0, 1), slice(1, None))


def with_two_adapters(name: str, targets: tuple[str, ...] | str, **settings: float) -> LanguageModel:
    """A model that holds adapters `one` and `two` at the same layers."""
    model = tiny_model(name)
    random_lora(model, "one", targets=targets, **settings)
    randomize(LoRA(rank=5, alpha=3, targets=targets, **settings).attach(model, "two", seed=8), 0.2)
    return model


# ── anatomy ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_layers_are_counted_from_the_encoders_first_to_the_decoders_last(name: str) -> None:
    anatomy = tiny_model(name).anatomy
    assert [layer.index for layer in anatomy.layers] == [0, 1, 2, 3, 4]
    assert [layer.stack for layer in anatomy.layers] == ["encoder"] * 2 + ["decoder"] * 3
    assert [layer.index for layer in anatomy.answering] == [2, 3, 4]
    for layer in anatomy.layers:
        assert (layer.cross_attention is not None) == (layer.stack == "decoder")
        assert set(layer.roles.values()) <= set(layer.linears)
        assert len({*layer.roles.values()}) == len(layer.roles) == (10 if layer.stack == "decoder" else 6)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_linear_layer_and_norm_is_found_and_nothing_else(name: str) -> None:
    hf, anatomy = plain_model(name), tiny_model(name).anatomy
    modules = dict(hf.named_modules())
    linears = {key for key, module in modules.items() if isinstance(module, nn.Linear)}
    norms = {key for key, module in modules.items() if "norm" in type(module).__name__.lower()}
    assert {*anatomy.linears, anatomy.head} == linears
    assert set(anatomy.norms) == norms
    assert len(anatomy.norms) == len(norms)
    assert set(anatomy.hidden_norms) == norms


def test_a_role_means_every_attention_and_a_cross_role_the_reading_of_the_encoder() -> None:
    anatomy = tiny_model("t5").anatomy
    queries = find_targets(anatomy, ("role:query",), None)
    assert len(queries) == 2 + 2 * 3
    cross = find_targets(anatomy, ("role:cross_query",), None)
    assert cross == tuple(f"decoder.block.{i}.layer.1.EncDecAttention.q" for i in range(3))
    assert set(cross) < set(queries)
    assert find_targets(anatomy, READS_SOURCE, (4,)) == tuple(
        f"decoder.block.2.layer.1.EncDecAttention.{part}" for part in "kv"
    )
    with pytest.raises(RecipeError, match="cross_query"):
        find_targets(tiny_model("llama").anatomy, ("role:cross_query",), None)


def test_the_lowest_layer_is_the_first_that_a_trained_module_reaches() -> None:
    anatomy = tiny_model("t5").anatomy
    last = anatomy.layers[4].linears[0]
    assert anatomy.lowest_layer([last]) == 4
    assert anatomy.lowest_layer([last, "encoder.final_layer_norm"]) == 2
    assert anatomy.lowest_layer(["decoder.final_layer_norm.weight", "lm_head"]) == 5
    assert anatomy.lowest_layer([last, "shared"]) is None
    assert tiny_model("bart").anatomy.lowest_layer(["model.encoder.layernorm_embedding"]) is None


def test_stacks_with_embeddings_of_their_own_are_refused() -> None:
    hf = plain_model("bart")
    place = hf.get_submodule("model.decoder.embed_tokens")
    place.weight = nn.Parameter(place.weight.clone())
    with pytest.raises(RecipeError, match="embeddings of their own"):
        read_anatomy(hf, family_of("bart"))


def test_a_t5_has_no_limit_of_positions_and_a_bart_its_configs() -> None:
    assert tiny_model("t5").context_length is None
    assert tiny_model("bart").context_length == 64
    assert (tiny_model("t5").answer_start, tiny_model("bart").answer_start, tiny_model("llama").answer_start) == (
        0,
        2,
        None,
    )


# ── the forward pass ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fast", [FastModel(), PLAIN, FastModel(head=False)], ids=["fast", "plain", "plain head"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_log_probabilities_of_padded_rows_are_those_of_transformers_for_each_row_alone(
    name: str, fast: FastModel
) -> None:
    logprob_N = tiny_model(name, fast).forward(answers_of(LENGTHS)).logprob_N
    assert_near(logprob_N, plain_logprobs(plain_model(name), with_sources(random_rows(LENGTHS))))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_what_pads_a_source_or_an_answer_is_not_seen(name: str) -> None:
    model, rows = tiny_model(name), with_sources(random_rows(LENGTHS))
    logprobs = [model.forward(collate(rows, "bucketed", pad_id)).logprob_N for pad_id in (0, 17)]
    assert_near(*logprobs, 1e-6)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_source_matters_to_every_answer(name: str) -> None:
    model, rows = tiny_model(name), with_sources(random_rows(LENGTHS))
    turned = [replace(row, source_S=63 - row.source_S) for row in rows if row.source_S is not None]
    assert_apart(
        model.forward(collate(rows, "bucketed", 0)).logprob_N, model.forward(collate(turned, "bucketed", 0)).logprob_N
    )


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_checkpointed_layers_of_both_stacks_give_the_same_gradients_dropout_included(name: str) -> None:
    results = []
    for checkpointed in (False, True):
        model = tiny_model(name)
        attachment = random_lora(model, dropout=0.3)
        if checkpointed:
            model.checkpoint_layers()
        logprob_N = model.forward(answers_of(LENGTHS), attachment.adapter, Draws(1, 2)).logprob_N
        results.append(torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values())))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert float(one.abs().max()) > 0


@pytest.mark.parametrize(
    "targets", ["all-linear", READS_SOURCE], ids=["all linear layers", "those that read the source"]
)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_each_row_of_a_batch_has_its_own_adapter_in_both_stacks(name: str, targets: tuple[str, ...] | str) -> None:
    model = with_two_adapters(name, targets, dropout=0.4)
    banks = [model.hf.get_submodule(target) for target in find_targets(model.anatomy, targets, None)]
    wanted = [bank.branch(one).tensors["lora_A.weight"] for one in ("one", "two") for bank in banks]
    rows, names, draws = with_sources(random_rows(LENGTHS)), ("one", None, "two", "one"), Draws(3, 4)
    mixed = model.forward(collate(rows, "bucketed", 0), names, draws).logprob_N
    alone = [
        model.forward(collate([row], "bucketed", 0), adapter, draws).logprob_N
        for row, adapter in zip(rows, names, strict=True)
    ]
    assert_near(mixed, torch.cat(alone))
    gradients = [
        torch.autograd.grad(sum(piece.sum() for piece in pieces), wanted, allow_unused=True, materialize_grads=True)
        for pieces in ([mixed], alone)
    ]
    assert_all_near(*gradients)
    assert_apart(mixed, model.forward(collate(rows, "bucketed", 0), "one", draws).logprob_N)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_dropout_draws_the_same_however_the_rows_are_cut_into_micro_batches(name: str) -> None:
    model = tiny_model(name)
    attachment = random_lora(model, dropout=0.5)
    rows, draws = with_sources(random_rows(LENGTHS)), Draws(7, 3)
    together = model.forward(collate(rows, "bucketed", 0), attachment.adapter, draws).logprob_N
    halves = [model.forward(collate(rows[half], "bucketed", 0), attachment.adapter, draws).logprob_N for half in HALVES]
    assert_near(together, torch.cat(halves))
    assert_apart(model.forward(collate(rows, "bucketed", 0), attachment.adapter).logprob_N, together)


# ── methods ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["t5-gated", "bart"])
def test_a_tuned_model_is_written_so_that_transformers_computes_the_same(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForSeq2SeqLM

    model = tiny_model(name)
    attachment = Full().attach(model, "default", seed=0)
    for index, tensor in enumerate(attachment.trainables.values()):
        draw = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index))
        tensor.data.add_(draw * 0.02)
    attachment.write(tmp_path, lambda sentence: None)
    expected = model.forward(answers_of(LENGTHS)).logprob_N
    plain, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    rows = with_sources(random_rows(LENGTHS))
    assert_near(plain_logprobs(plain.eval(), rows), expected)
    assert plain.generation_config.decoder_start_token_id == model.answer_start


def test_the_bias_of_positions_is_no_bias_and_no_linear_layer() -> None:
    attachment = BitFit(missing="add-zero").attach(tiny_model("t5"), "default", seed=0)
    assert not any("relative" in name for name in attachment.trainables)
    trained = Full(layers=(0,), train_embedding=False, train_head=False).attach(tiny_model("t5"), "default", seed=0)
    assert any("relative_attention_bias" in name for name in trained.trainables)


def test_the_counts_of_norms_are_those_of_the_formulas() -> None:
    width, read, written = 32, 2, 3
    t5 = LNTuning().attach(tiny_model("t5"), "default", seed=0)
    assert t5.num_trainable == (2 * read + 1) * width + (3 * written + 1) * width
    bart = LNTuning().attach(tiny_model("bart"), "default", seed=0)
    assert bart.num_trainable == 2 * width * ((2 * read + 1) + (3 * written + 1))


def test_the_top_layers_are_the_decoders_and_leave_what_the_encoder_gives_as_it_is() -> None:
    model = tiny_model("t5")
    attachment = TopLayers(num_layers=2).attach(model, "default", seed=0)
    assert attachment.lowest_layer == 3
    assert all(
        name.startswith(("decoder.block.1.", "decoder.block.2.", "decoder.final")) for name in attachment.trainables
    )
    with pytest.raises(RecipeError, match="3 layers"):
        TopLayers(num_layers=4).attach(tiny_model("t5"), "default", seed=0)


def test_a_tied_head_of_a_t5_is_scaled_and_an_untied_one_is_not() -> None:
    assert tiny_config("t5").scale_decoder_outputs
    assert not tiny_config("t5-gated").scale_decoder_outputs
    state_ND = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    for name, factor in (("t5", 32**-0.5), ("t5-gated", 1.0)):
        model = tiny_model(name)
        head_OI = model.hf.get_submodule("lm_head").weight
        head = model.forward(answers_of(LENGTHS)).head
        assert_near(head.logits(state_ND), state_ND @ head_OI.t() * factor)
