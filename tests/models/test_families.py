"""Every family: Luthier's batches and decoding against each document alone through plain transformers."""

from __future__ import annotations

import pytest
import torch
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import CONFIGS, MIXTURES, NAMES, PLAIN, built_anew, plain_model, tiny_model
from models.tuned import LENGTHS, plain_attention, random_lora
from near import assert_all_near, assert_near
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from luthier.errors import RecipeError
from luthier.methods.contract import Attachment
from luthier.models.anatomy import is_norm
from luthier.models.call import Draws
from luthier.models.families import FAMILIES, family_of
from luthier.models.fast_layers import FastLinear
from luthier.models.language_model import FastModel, LanguageModel


def loss_gradients(
    model: LanguageModel, attachment: Attachment, lengths: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """The log-probabilities of a batch, and the gradient of their weighted sum for each trained tensor."""
    batch = batch_of(lengths, model.layout)
    logprob_N = model.forward(batch, attachment.adapter).logprob_N
    loss = (logprob_N * batch.targets.weight_N).sum()
    return logprob_N, list(torch.autograd.grad(loss, list(attachment.trainables.values())))


def test_every_family_has_a_tiny_model() -> None:
    known = {model_type for family in FAMILIES for model_type in family.model_types}
    assert known == {model_type for model_type, _ in CONFIGS.values()}


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_a_batch_of_documents_gives_each_what_plain_transformers_gives_it_alone(name: str) -> None:
    rows = random_rows(LENGTHS)
    expected = plain_logprobs(plain_model(name, plain_attention(name)), rows)
    for fast in (FastModel(), PLAIN):
        model = tiny_model(name, fast)
        assert_near(model.forward(batch_of(LENGTHS, model.layout)).logprob_N, expected)


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_the_fast_paths_and_the_plain_ones_agree_in_value_and_in_every_lora_gradient(name: str) -> None:
    results = []
    for fast in (FastModel(), PLAIN):
        model = tiny_model(name, fast)
        attachment = random_lora(model, fast=fast.head, targets="all-linear")
        results.append(loss_gradients(model, attachment, LENGTHS))
    assert_near(results[0][0], results[1][0])
    assert_all_near(results[0][1], results[1][1], 2e-5)  # how sums round depends on the number of threads


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_the_fast_paths_and_the_plain_ones_agree_in_the_gradient_of_every_base_weight(name: str) -> None:
    results = []
    for fast in (FastModel(), PLAIN):
        model = tiny_model(name, fast)
        weights = dict(model.hf.requires_grad_(True).named_parameters())
        loss = model.forward(batch_of(LENGTHS, model.layout)).logprob_N.sum()
        results.append(dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)))
    for key, expected in results[1].items():
        # a key bias shifts all scores of a query alike: its gradient is rounding alone, so it is not compared with itself
        largest = max(float(expected.abs().max()), 0.1)
        assert float((results[0][key] - expected).abs().max()) <= 1e-5 * largest


@pytest.mark.parametrize("switch", ["attention", "head", "gated_mlp", "norm", "linear"])
def test_each_switch_alone_changes_nothing(switch: str) -> None:
    expected = tiny_model("gemma2").forward(batch_of(LENGTHS, "packed")).logprob_N
    model = tiny_model("gemma2", FastModel(**{switch: False}))
    assert_near(model.forward(batch_of(LENGTHS, "packed")).logprob_N, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-new"])
def test_fast_linears_compute_and_train_as_those_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for onednn in (True, False):
        monkeypatch.setattr("luthier.models.fast_layers.prefers_onednn", lambda outputs, onednn=onednn: onednn)
        with built_anew():
            model = tiny_model(name)
        linears = [type(model.hf.get_submodule(target)) for target in (*model.anatomy.linears, model.anatomy.head)]
        assert (FastLinear in linears) == onednn
        for trained in (model.anatomy.final_norm, model.anatomy.layers[0].norms[0]):  # gradients through frozen layers
            model.hf.get_submodule(trained).requires_grad_(True)
        weights = [weight for weight in model.hf.parameters() if weight.requires_grad]
        logprob_N = model.forward(batch_of(LENGTHS, model.layout)).logprob_N
        results.append([logprob_N, *torch.autograd.grad(logprob_N.sum(), weights)])
    assert_all_near(*results)


@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_the_anatomy_names_every_part(name: str) -> None:
    model = tiny_model(name)
    modules = dict(model.hf.named_modules())
    anatomy = model.anatomy
    linears = {key for key, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    around = {anatomy.head} | {key for key in linears if key.endswith(("project_in", "project_out"))}
    assert {*anatomy.linears, *anatomy.routers} == linears - around
    assert len(anatomy.layers) == 2
    assert isinstance(modules[anatomy.embedding], nn.Embedding)
    assert modules[anatomy.head] is model.hf.get_output_embeddings()
    assert modules[anatomy.embedding] is model.hf.get_input_embeddings()
    assert anatomy.is_head_tied == (modules[anatomy.head].weight is modules[anatomy.embedding].weight)
    for layer in anatomy.layers:
        assert layer.attention in modules
        assert layer.feedforward in modules
        assert all(anatomy.layer_of(part) == layer.index for part in (*layer.linears, *layer.norms))
    assert anatomy.layer_of(anatomy.embedding) is anatomy.layer_of(anatomy.head) is None
    norms = {key for key, module in modules.items() if is_norm(module)}
    assert set(anatomy.norms) == norms
    assert {len(modules[norm].weight) for norm in anatomy.hidden_norms} == {32}
    assert norms - set(anatomy.hidden_norms) == {key for key in norms if key.rpartition(".")[2][:2] in ("q_", "k_")}
    assert (anatomy.final_norm is None) == (name == "opt-norm-after")


@pytest.mark.parametrize("name", NAMES)
def test_the_anatomy_names_the_ends_of_both_sublayers_and_the_norms_around_them(name: str) -> None:
    anatomy = tiny_model(name).anatomy
    assert anatomy.norms_first == (name != "opt-norm-after")
    for layer in anatomy.layers:
        assert layer.attention_out in layer.linears
        assert layer.down in layer.linears
        norms = (layer.attention_norm, layer.feedforward_norm, layer.attention_post_norm, layer.feedforward_post_norm)
        within = {part for part in layer.norms if not part.startswith(layer.attention + ".")}
        assert {norm for norm in norms if norm is not None} == within


@pytest.mark.parametrize("lengths", [(9, 4), (6, 6)])
@pytest.mark.parametrize("name", [*NAMES, *MIXTURES])
def test_decoding_over_a_cache_gives_what_a_whole_forward_pass_gives(name: str, lengths: tuple[int, int]) -> None:
    model, plain = tiny_model(name), plain_model(name, plain_attention(name))
    prompts = [row.parts[0].tokens_T.tolist() for row in random_rows(lengths)]
    forced = torch.tensor([[5, 11, 7], [8, 3, 9]])
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for cache in (DynamicCache(), DynamicCache(config=model.hf.config)):
        seen, step_mask = [model.decode(tokens, positions, mask, cache)], mask
        for step in range(forced.shape[1]):
            step_mask = torch.cat([step_mask, torch.ones(2, 1, dtype=torch.int64)], dim=1)
            at = step_mask.sum(-1, keepdim=True) - 1
            seen.append(model.decode(forced[:, step : step + 1], at, step_mask, cache))
        for row, prompt in enumerate(prompts):
            whole = torch.tensor([prompt + forced[row].tolist()])
            expected = plain(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 :]
            assert_near(torch.stack(seen)[:, row], expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon-alibi", "bloom"])
def test_checkpointed_layers_give_the_same_gradients_dropout_included(name: str) -> None:
    results = []
    for checkpointed in (False, True):
        model = tiny_model(name)
        attachment = random_lora(model, dropout=0.3)
        if checkpointed:
            model.checkpoint_layers()
        batch = batch_of(LENGTHS, model.layout)
        logprob_N = model.forward(batch, attachment.adapter, Draws(1, 2)).logprob_N
        results.append(torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values())))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_checkpointed_layer_is_computed_again_to_its_end_for_nothing_within_it_was_kept() -> None:
    model = tiny_model("llama")
    attachment = random_lora(model)
    model.checkpoint_layers()
    calls = dict.fromkeys((layer.down for layer in model.anatomy.layers), 0)

    def count(name: str) -> None:
        calls[name] += 1

    for name in calls:
        model.hf.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: count(name))
    logprob_N = model.forward(batch_of(LENGTHS, "packed"), attachment.adapter).logprob_N
    torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values()))
    assert set(calls.values()) == {2}


def test_an_unknown_family_is_refused_with_the_field_and_the_known_ones() -> None:
    with pytest.raises(RecipeError) as refused:
        family_of("mamba")
    assert refused.value.field == "model"
    assert "'mamba'" in refused.value.found
    assert "llama" in refused.value.found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon-new"])
def test_half_precision_weights_give_the_fp32_answer_up_to_their_rounding(name: str, dtype: torch.dtype) -> None:
    batch = batch_of(LENGTHS, tiny_model(name).layout)
    model = tiny_model(name, dtype=dtype)
    attachment = random_lora(model)
    half = model.forward(batch, attachment.adapter).logprob_N
    assert half.dtype == torch.float32
    gradients = torch.autograd.grad(half.sum(), list(attachment.trainables.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    exact_model = tiny_model(name)
    exact = exact_model.forward(batch, random_lora(exact_model).adapter).logprob_N
    assert_near(half, exact, 0.05)
