"""UniPELT: gates shut, open and between, each token's own, in training, in a cache and where attention is looked into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from methods.beside import gradients
from methods.prefixed import attentions, exchange_keys
from models.rows import plain_logprobs, random_row, random_rows, with_sources
from models.tiny import ENCODER_DECODERS, PLAIN, plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, randomize, usual_batch
from near import assert_all_near, assert_apart, assert_near
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.methods import Attachment, Ladder, LoRA, Pfeiffer, PrefixTuning, Stack, UniPELT
from luthier.models.language_model import LanguageModel
from luthier.models.logits import logits
from luthier.types import Example, Part, Segment

V = 3
LORA = LoRA(rank=2, alpha=5, targets=("role:query", "role:value"))
PREFIX = PrefixTuning(num_virtual_tokens=V)
ADAPTER = Pfeiffer(width=5)
METHOD = UniPELT(lora=LORA, prefix=PREFIX, adapter=ADAPTER)
RELATIVE = ("llama", "gemma2", "mistral", "phi", "gpt_neox", "t5", "t5-gated")
"""Models to which only the distance of positions matters, so that an unseen prefix leaves no trace."""


def random_unipelt(model: LanguageModel, size: float = 0.3) -> Attachment:
    """Parts and gates that are all at work."""
    attachment = METHOD.attach(model, "default", seed=0)
    randomize(attachment, size)
    return attachment


def set_gates(attachment: Attachment, bias: float, of: str = "gates.") -> None:
    """Give the gates whose names begin so one value, whatever they read."""
    for key, tensor in attachment.trainables.items():
        if key.startswith(of):
            tensor.data.fill_(bias if key.endswith("bias") else 0.0)


@pytest.mark.parametrize("fast", [None, PLAIN], ids=["fast", "plain"])
@pytest.mark.parametrize("name", RELATIVE)
def test_with_its_gates_shut_it_is_the_base(name: str, fast: Any) -> None:
    model = tiny_model(name, fast)
    before = logprobs(model, None)
    attachment = random_unipelt(model)
    assert_apart(logprobs(model), before)
    set_gates(attachment, -1e4)
    assert_near(logprobs(model), before)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt-norm-after", "olmo2", "granite", "t5", "bart"])
def test_with_its_gates_open_it_is_its_parts(name: str) -> None:
    model, plain = tiny_model(name), tiny_model(name)
    attachment = random_unipelt(model)
    set_gates(attachment, 1e4)
    parts = Stack(parts=(LORA, PREFIX, ADAPTER)).attach(plain, "default", seed=0)
    called = {"parts.0.": "lora.", "parts.1.": "prefix.", "parts.2.": "adapter."}
    for key, tensor in parts.trainables.items():
        begin = key[: len("parts.0.")]
        tensor.data.copy_(attachment.trainables[called[begin] + key.removeprefix(begin)])
    assert_near(logprobs(model), logprobs(plain))


def watched_attention(model: LanguageModel) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the first layer's attention (T, D), what leaves it, and its weights (H, T, T), in the usual rows."""
    seen: dict[str, Tensor] = {}
    attention = model.hf.get_submodule(model.anatomy.layers[0].attention)

    def keep(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["in"] = (args[0] if args else kwargs["hidden_states"])[0].detach()
        seen["out"] = output[0][0].detach()

    handle = attention.register_forward_hook(keep, with_kwargs=True)
    weights = model.attention(usual_batch(model, "default"), "default")[0]
    handle.remove()
    return seen["in"], seen["out"], weights


@pytest.mark.parametrize("fast", [None, PLAIN], ids=["fast", "plain"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3", "gpt_neox"])
def test_attention_is_mixed_by_a_gate_of_what_enters_it_at_the_querys_token(name: str, fast: Any) -> None:
    model = tiny_model(name, fast)
    attachment = METHOD.attach(
        model, "default", seed=0
    )  # the LoRA does nothing yet, so that queries stay what they are
    first = f"gates.prefix.{model.anatomy.layers[0].name}."
    found = {}
    for bias in (-1e4, 1e4):
        set_gates(attachment, bias, first)
        found[bias] = watched_attention(model)
    weight_D, bias_1 = (attachment.trainables[first + ending] for ending in ("weight", "bias"))
    weight_D.data.copy_(torch.randn(weight_D.shape, generator=torch.Generator().manual_seed(1)))
    bias_1.data.fill_(0.3)
    x_TD, out_TD, weights_HTT = watched_attention(model)
    g_T = torch.sigmoid(x_TD @ weight_D + bias_1).detach()
    assert float(g_T.max() - g_T.min()) > 0.3
    positions_T = usual_batch(model, "default").positions_BT[0]
    own = positions_T >= V
    (_, shut_TD, shut_HTT), (_, open_TD, open_HTT) = found[-1e4], found[1e4]
    assert_near(out_TD[own], ((1 - g_T)[:, None] * shut_TD + g_T[:, None] * open_TD)[own])
    assert_near(weights_HTT[:, own], ((1 - g_T)[:, None] * shut_HTT + g_T[:, None] * open_HTT)[:, own])
    assert_near(shut_HTT[:, own][..., positions_T < V], torch.zeros(1).expand(shut_HTT[:, own][..., ~own].shape))
    assert_apart(open_TD[own], shut_TD[own])


@pytest.mark.parametrize("part", ["lora", "adapter"])
def test_the_gates_of_lora_and_adapter_scale_what_those_add_token_by_token(part: str) -> None:
    model = tiny_model("llama")
    attachment = random_unipelt(model)
    place = model.anatomy.layers[0].roles["query" if part == "lora" else "down"]
    weight_D, bias_1 = (attachment.trainables[f"gates.{part}.{place}.{ending}"] for ending in ("weight", "bias"))
    gate_reads = place if part == "lora" else model.anatomy.layers[0].feedforward_norm
    seen: dict[str, Tensor] = {}
    reader, layer = model.hf.get_submodule(str(gate_reads)), model.hf.get_submodule(place)
    reader.register_forward_pre_hook(lambda module, args: seen.update(x=args[0].detach().flatten(0, -2)))
    layer.register_forward_hook(lambda module, args, output: seen.update(y=output.detach().flatten(0, -2)))
    outputs = {}
    weights = weight_D.detach().clone(), bias_1.detach().clone()
    for bias in (None, -1e4, 1e4):
        weight_D.data.copy_(weights[0] if bias is None else torch.zeros_like(weights[0]))
        bias_1.data.copy_(weights[1] if bias is None else torch.full_like(weights[1], bias))
        logprobs(model)
        outputs[bias] = seen["x"], seen["y"]
    x_TD, y_TO = outputs[None]
    g_T1 = torch.sigmoid(x_TD @ weights[0] + weights[1])[:, None]
    assert_near(outputs[1e4][0], x_TD)
    assert_near(y_TO, (1 - g_T1) * outputs[-1e4][1] + g_T1 * outputs[1e4][1])
    assert_apart(outputs[1e4][1], outputs[-1e4][1])


def test_a_later_token_changes_no_earlier_one() -> None:
    model = tiny_model("llama")
    random_unipelt(model)
    (row,) = random_rows((12,))
    placed = with_placeholders(row, V)
    before = model.hidden(collate([placed], "packed", 0), "default").detach()
    placed.parts[0].tokens_T[-1] = (placed.parts[0].tokens_T[-1] + 1) % 60
    after = model.hidden(collate([placed], "packed", 0), "default").detach()
    assert_near(after[:, :-1], before[:, :-1], 1e-6)
    assert_apart(after[:, -1], before[:, -1])


def last_logits(model: LanguageModel, rows: list[list[int]]) -> Tensor:
    """The scores after rows padded on the left and one more token each, both from `decode`."""
    width = max(len(row) for row in rows)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.bool)
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    cache = DynamicCache()
    model.decode(tokens, (mask.cumsum(-1) - 1).clamp(min=0), mask, cache, "default")
    more = torch.ones(len(rows), 1, dtype=torch.bool)
    return model.decode(
        torch.full((len(rows), 1), 9), mask.sum(-1, keepdim=True), torch.cat([mask, more], 1), cache, "default"
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral"])
def test_rows_padded_on_the_left_over_a_cache_are_as_whole_ones(name: str) -> None:
    model = tiny_model(name)
    random_unipelt(model, 0.5)
    rows = [[0] * V + [5, 6, 7, 20, 21], [0] * V + [8]]
    together = last_logits(model, rows)
    for index, row in enumerate(rows):
        whole, length = torch.tensor([[*row, 9]]), len(row) + 1
        segments, last = (Segment(0, length),), torch.tensor([length - 1])
        alone = model.prefill(whole, torch.arange(length)[None], segments, last, DynamicCache(), "default")
        assert_near(together[index : index + 1], alone)


def behind(beginning: Example, row: Example) -> Example:
    """The row behind the tokens of another, of which it learns nothing."""
    tokens_T = np.concatenate([beginning.parts[0].tokens_T, row.parts[0].tokens_T])
    return replace(row, parts=(Part(tokens_T),), source_N=row.source_N + beginning.num_tokens)


@pytest.mark.parametrize("common", [0, 9])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_shared_beginning_and_recomputed_layers_change_neither_values_nor_gradients(name: str, common: int) -> None:
    found = []
    method = UniPELT(lora=LORA, prefix=PrefixTuning(num_virtual_tokens=6), adapter=ADAPTER)
    plain = random_rows(LENGTHS)
    rows = [behind(random_row(common, 99), row) for row in plain] if common else plain
    for shares, recomputes in ((False, False), (True, False), (False, True)):
        model = tiny_model(name)
        attachment = method.attach(model, "default", seed=0)
        randomize(attachment, 0.3)
        if recomputes:
            model.checkpoint_layers()
        batch = collate([with_placeholders(row, 6) for row in rows], model.layout, 0, shares_prefix=shares)
        assert (batch.segments[0] == Segment(0, 6 + common)) == shares
        logprob = model.forward(batch, "default").logprob_N
        found.append([logprob, *torch.autograd.grad(logprob.sum(), list(attachment.trainables.values()))])
    for other in found[1:]:
        assert_all_near(other, found[0], 5e-5)


@pytest.mark.parametrize("name", ["llama", *ENCODER_DECODERS])
def test_documents_with_and_without_gates_stand_in_one_batch(name: str) -> None:
    model = tiny_model(name)
    random_unipelt(model)
    randomize(PrefixTuning(num_virtual_tokens=5).attach(model, "plain", seed=1), 0.5)
    whose = ("plain", "default", None, "default")
    mixed = model.forward(usual_batch(model, whose), whose).logprob_N
    counts = [row.num_learned for row in random_rows(LENGTHS)]
    for row, (adapter, part) in enumerate(zip(whose, mixed.split(counts), strict=True)):
        assert_near(part, logprobs(model, adapter).split(counts)[row])


def test_dropout_of_the_lora_is_drawn_alike_in_the_backward_pass() -> None:
    dropping = UniPELT(lora=LORA.model_copy(update={"dropout": 0.4}), prefix=PREFIX, adapter=ADAPTER)
    kept, recomputed = (gradients("llama", lambda m: dropping.attach(m, "default", seed=0), c) for c in (False, True))
    assert_all_near(recomputed, kept, 1e-6)
    assert dropping.attach(tiny_model("llama"), "default", seed=0).draws


def test_the_count_is_that_of_the_parts_and_their_gates() -> None:
    attachment = METHOD.attach(tiny_model("llama"), "default", seed=0)
    lora = 2 * (2 * (32 + 32) + 2 * (32 + 16))
    prefix, adapter = 2 * 2 * V * 2 * 8, 2 * (2 * 32 * 5 + 32 + 5)
    assert attachment.num_trainable == lora + prefix + adapter + 4 * 33 + 2 * 2 * 33
    assert attachment.num_virtual == V


# ── encoder-decoders ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fast", [None, PLAIN], ids=["fast", "plain"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_every_attention_of_an_encoder_decoder_is_mixed_by_a_gate_of_its_own(name: str, fast: Any) -> None:
    model = tiny_model(name, fast)
    attachment = METHOD.attach(model, "default", seed=0)  # the LoRA and the bottlenecks do nothing yet
    gates = {key: tensor for key, tensor in attachment.trainables.items() if key.startswith("gates.prefix.")}
    for index, tensor in enumerate(gates.values()):
        tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)) * 0.3)
    plain, prefix = plain_model(name), model.virtual_tokens["default"].prefix
    assert prefix is not None
    modules = {called: plain.get_submodule(place) for called, place in attentions(model.anatomy).items()}
    exchange_keys(
        plain,
        dict(zip(modules.values(), prefix(), strict=True)),
        {
            module: (gates[f"gates.prefix.{called}.weight"], gates[f"gates.prefix.{called}.bias"])
            for called, module in modules.items()
        },
    )
    placed = [with_placeholders(row, V, V) for row in with_sources(random_rows(LENGTHS))]
    assert_near(logprobs(model), plain_logprobs(plain, placed))
    assert len(gates) == 2 * (2 + 2 * 3)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_gate_that_is_shut_leaves_out_the_prefix_of_its_own_attention_and_no_other(name: str) -> None:
    model = tiny_model(name)
    attachment = random_unipelt(model)
    tensors = attachment.trainables
    (prefix,) = (tensor for key, tensor in tensors.items() if key.startswith("prefix."))
    places = list(attentions(model.anatomy))
    for shut, place in enumerate(places):
        weight_D, bias_1 = (tensors[f"gates.prefix.{place}.{ending}"] for ending in ("weight", "bias"))
        before = weight_D.detach().clone(), bias_1.detach().clone()
        weight_D.data.zero_()
        bias_1.data.fill_(-1e4)
        logprob_N = model.forward(usual_batch(model, "default"), "default").logprob_N
        (gradient,) = torch.autograd.grad(logprob_N.sum(), [prefix])
        is_seen = (gradient.view(V, len(places), -1).abs().sum((0, 2)) > 0).tolist()
        assert is_seen == [index != shut for index in range(len(places))]
        weight_D.data.copy_(before[0])
        bias_1.data.copy_(before[1])


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_answer_over_a_cache_is_scored_as_in_one_pass(name: str) -> None:
    model = tiny_model(name)
    random_unipelt(model, 0.5)
    batch = collate([with_placeholders(row, V, V) for row in with_sources(random_rows((6, 6)))], "bucketed", 0)
    assert batch.sources is not None
    read = model.encode(batch.sources, "default")
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    whole_BTD = model.hidden(batch, "default")
    for start, stop in ((0, V + 1), *((at, at + 1) for at in range(V + 1, V + 6))):
        tokens_BT, positions_BT = (x[:, start:stop] for x in (batch.tokens_BT, batch.positions_BT))
        mask_BL = torch.ones(2, stop, dtype=torch.bool)
        said_BV = model.decode(tokens_BT, positions_BT, mask_BL, cache, "default", read)
        assert_near(said_BV, logits(model.hf, model.anatomy, whole_BTD[:, stop - 1]))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_recomputed_layers_of_both_stacks_change_neither_values_nor_gradients(name: str) -> None:
    found = []
    for recomputes in (False, True):
        model = tiny_model(name)
        attachment = random_unipelt(model)
        if recomputes:
            model.checkpoint_layers()
        logprob_N = model.forward(usual_batch(model, "default"), "default").logprob_N
        found.append([logprob_N, *torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values()))])
    assert_all_near(found[1], found[0], 1e-6)
    assert all(float(tensor.detach().abs().max()) > 0 for tensor in found[0])


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_ladder_over_both_stacks_stands_in_one_batch_with_gates(name: str) -> None:
    model = tiny_model(name)
    randomize(Ladder(reduction=2).attach(model, "side", seed=1), 0.3)
    random_unipelt(model)
    whose = ("side", "default", None, "side")
    mixed = model.forward(usual_batch(model, whose), whose).logprob_N
    counts = [row.num_learned for row in random_rows(LENGTHS)]
    for row, (adapter, part) in enumerate(zip(whose, mixed.split(counts), strict=True)):
        assert_near(part, logprobs(model, adapter).split(counts)[row])


def test_the_count_in_an_encoder_decoder_has_three_prefixes_and_gates_a_pair_of_layers() -> None:
    attachment = METHOD.attach(tiny_model("t5"), "default", seed=0)
    places, layers, width, inner = 2 + 2 * 3, 2 + 3, 32, 24
    lora = 2 * places * 2 * (width + inner)
    prefix, adapter = 2 * places * V * inner, layers * (2 * width * 5 + width + 5)
    assert attachment.num_trainable == lora + prefix + adapter + 2 * places * 33 + (places + layers) * 33
    assert (attachment.num_virtual, attachment.num_virtual_answer) == (V, V)
