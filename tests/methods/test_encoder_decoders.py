"""Where methods stand in an encoder-decoder: formulas beside plain transformers, counts of published models, peft's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.beside import dense
from methods.by_peft import MEANT
from methods.prefixed import attentions, exchange_keys
from models.rows import plain_logprobs, random_rows, with_sources
from models.tiny import ENCODER_DECODERS, plain_model, tiny_model, tiny_tokenizer
from models.tuned import LENGTHS, logprobs, quiet, randomize, usual_batch
from near import assert_apart, assert_near
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from luthier.data.placeholders import with_placeholders
from luthier.errors import RecipeError
from luthier.methods import (
    IA3,
    AttentionFusion,
    Compacter,
    Houlsby,
    Ladder,
    LNTuning,
    LoRA,
    Method,
    Parallel,
    Pfeiffer,
    PrefixTuning,
    PromptTuning,
    Rows,
)
from luthier.methods.ladder import LadderSide
from luthier.methods.prefix_tuning import states_of
from luthier.models.anatomy import LayerAnatomy
from luthier.models.families import family_of
from luthier.models.language_model import Identity, LanguageModel
from luthier.models.reading import read_anatomy
from luthier.models.taps import Taps
from luthier.types import Example

pytestmark = [
    *MEANT,
    pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning"),
]
NUM_VIRTUAL = 3
T5_BASE = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
T0_3B = {
    "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
Added = Callable[[Tensor], Tensor]


def usual_rows() -> list[Example]:
    return with_sources(random_rows(LENGTHS))


# ── adapters at the ends of sublayers ───────────────────────────────────────────────────────────────────────────────


def test_bottlenecks_stand_after_attention_and_feed_forward_and_after_the_cross_attention_only_if_asked() -> None:
    model = tiny_model("t5")
    houlsby = Houlsby(width=4).attach(model, "default", seed=0)
    assert list(houlsby.layers) == [
        name for layer in model.anatomy.layers for name in (layer.attention_out, layer.down)
    ]
    asked = Houlsby(width=4, sublayers=("cross-attention",)).attach(tiny_model("t5"), "default", seed=0)
    assert list(asked.layers) == [f"decoder.block.{i}.layer.1.EncDecAttention.o" for i in range(3)]
    with pytest.raises(RecipeError, match="no cross-attention"):
        Houlsby(sublayers=("cross-attention",)).attach(tiny_model("llama"), "default", seed=0)


@pytest.mark.parametrize("method", [Pfeiffer(width=5), Parallel(width=5, scale=1.5), Houlsby(width=5)])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_bottlenecks_compute_their_formula_in_both_stacks(name: str, method: Method) -> None:
    model = tiny_model(name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    plain = plain_model(name)
    for layer in model.anatomy.layers:
        f = {
            place: dense(attachment, place, method.activation, method.scale)
            for place in (layer.attention_out, layer.down)
            if f"{place}.adapter_up.bias" in attachment.trainables
        }
        if isinstance(method, Houlsby):
            for place, added in f.items():
                plain.get_submodule(place).register_forward_hook(lambda module, args, u, f=added: u + f(u))
        else:
            add = _after_t5 if name.startswith("t5") else _after_bart
            add(plain, layer, f[layer.down], reads_sum=isinstance(method, Pfeiffer))
    assert_near(logprobs(model), plain_logprobs(plain, usual_rows()))
    assert_apart(logprobs(model), logprobs(model, None))


def _after_t5(plain: PreTrainedModel, layer: LayerAnatomy, f: Added, reads_sum: bool) -> None:
    """h' = r + u + f(r + u), or + f(r): the last sublayer's module gets r and gives r + u."""
    last = plain.get_submodule(layer.feedforward.rpartition(".")[0])
    last.register_forward_hook(lambda module, args, sum_: sum_ + f(sum_ if reads_sum else args[0]))


def _after_bart(plain: PreTrainedModel, layer: LayerAnatomy, f: Added, reads_sum: bool) -> None:
    """h' = LN(r + u + f(LN(r + u))), or + f(r): fc1 gets r, the last norm gets r + u."""
    norm, seen = plain.get_submodule(f"{layer.name}.final_layer_norm"), {}
    plain.get_submodule(f"{layer.name}.fc1").register_forward_pre_hook(lambda module, args: seen.update(r=args[0]))

    def add(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0] + f(norm.forward(args[0]) if reads_sum else seen["r"]),)

    norm.register_forward_pre_hook(add)


# ── virtual tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_soft_prompt_stands_before_the_source_and_leaves_the_answer_alone() -> None:
    model = tiny_model("bart")
    attachment = PromptTuning(num_virtual_tokens=NUM_VIRTUAL, init="text", text="w3 w40 w7").attach(
        model, "default", seed=0
    )
    assert (attachment.num_virtual, attachment.num_virtual_answer) == (NUM_VIRTUAL, 0)
    placed = [with_placeholders(row, NUM_VIRTUAL) for row in usual_rows()]
    for row in placed:
        assert row.source_S is not None
        row.source_S[:NUM_VIRTUAL] = (3, 40, 7)
    assert_near(logprobs(model), plain_logprobs(plain_model("bart"), placed))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_prefixes_are_keys_and_values_before_those_of_each_attention(name: str) -> None:
    model = tiny_model(name)
    attachment = PrefixTuning(num_virtual_tokens=NUM_VIRTUAL).attach(model, "default", seed=0)
    randomize(attachment, 0.5)
    assert (attachment.num_virtual, attachment.num_virtual_answer) == (NUM_VIRTUAL, NUM_VIRTUAL)
    inner = 32 if name == "bart" else 24
    assert attachment.num_trainable == 2 * NUM_VIRTUAL * inner * (2 + 2 * 3)
    prefix = model.virtual_tokens["default"].prefix
    assert prefix is not None
    plain = plain_model(name)
    places = attentions(model.anatomy).values()
    exchange_keys(plain, {plain.get_submodule(place): prefix()[i] for i, place in enumerate(places)})
    placed = [with_placeholders(row, NUM_VIRTUAL, NUM_VIRTUAL) for row in usual_rows()]
    expected = plain_logprobs(plain, placed)
    assert_near(logprobs(model), expected)
    for row in placed:  # what stands there does not matter
        assert row.source_S is not None
        row.source_S[:NUM_VIRTUAL] = row.parts[0].tokens_T[:NUM_VIRTUAL] = 9
    assert_near(plain_logprobs(plain, placed), expected, 1e-6)
    logprob_N = model.forward(usual_batch(model, "default"), "default").logprob_N
    gradients = torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values()))
    assert all(bool((gradient.view(NUM_VIRTUAL, 8, -1).abs().sum(-1) > 0).all()) for gradient in gradients)


def test_a_prefix_begins_as_the_true_keys_and_values_of_a_text() -> None:
    for name in ("t5", "bart"):
        states_LSVKE = states_of(tiny_model(name), torch.tensor([3, 40, 7]))
        text = torch.tensor([[3, 40, 7]])
        caches = plain_model(name)(input_ids=text, decoder_input_ids=text, use_cache=True).past_key_values
        layers = (*caches.self_attention_cache.layers, *caches.cross_attention_cache.layers)
        assert states_LSVKE.shape[0] == 2 + len(layers)
        for states, layer in zip(states_LSVKE[2:], layers, strict=True):
            assert_near(states.transpose(1, 2), torch.cat([layer.keys, layer.values]))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_each_prefix_of_an_encoder_decoder_has_a_network_of_its_own(name: str) -> None:
    attachment = PrefixTuning(num_virtual_tokens=2, projection=5).attach(tiny_model(name), "default", seed=0)
    w, rows = attachment.trainables, []
    for part in ("encoder", "decoder", "cross"):
        inner = torch.tanh(w[f"{part}.embedding"] @ w[f"{part}.network.0.weight"].t() + w[f"{part}.network.0.bias"])
        rows.append(inner @ w[f"{part}.network.2.weight"].t() + w[f"{part}.network.2.bias"])
    inner_width = 32 if name == "bart" else 24
    assert [part.shape[1] for part in rows] == [2 * inner_width * count for count in (2, 3, 3)]
    assert_near(attachment.file_tensors()["prompt_embeddings"], torch.cat(rows, 1))
    row = 2 * inner_width * (2 + 3 + 3)
    assert attachment.num_trainable == 3 * (2 * 32 + 32 * 5 + 5) + 5 * row + row
    decays = {key: group.decays for group in attachment.groups for key in group.tensors}
    assert {key for key, does in decays.items() if not does} == {
        f"{p}.embedding" for p in ("encoder", "decoder", "cross")
    }


def test_a_prefix_of_an_encoder_decoder_is_read_back_with_its_network(tmp_path: Path) -> None:
    model = tiny_model("t5")
    attachment = PrefixTuning(num_virtual_tokens=2, projection=5).attach(model, "default", seed=0)
    randomize(attachment, 0.4)
    attachment.write(tmp_path, quiet)
    again = tiny_model("t5")
    loaded = PrefixTuning(begin_from=str(tmp_path)).attach(again, "default", seed=3)
    assert set(loaded.trainables) == set(attachment.trainables)
    assert_near(logprobs(again), logprobs(model), 1e-6)


# ── rows, fusion ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_trained_rows_of_the_shared_embedding_serve_source_answer_and_tied_head(name: str) -> None:
    model = tiny_model(name)
    attachment = Rows(tokens=(11, 30)).attach(model, "default", seed=0)
    randomize(attachment, 0.4)
    plain = plain_model(name)
    (rows_KD,) = attachment.trainables.values()
    tables = {id(t): t for t in (plain.get_input_embeddings().weight, plain.get_output_embeddings().weight)}
    for table in tables.values():
        table.data[[11, 30]] = rows_KD.detach()
    assert_near(logprobs(model), plain_logprobs(plain, usual_rows()))
    attachment.merge()
    assert_near(logprobs(model, None), plain_logprobs(plain, usual_rows()))


def test_fusion_is_over_the_decoders_layers_and_needs_no_backward_pass() -> None:
    model = tiny_model("t5")
    attachment = AttentionFusion().attach(model, "default", seed=0)
    assert attachment.trainables["layer_bias"].shape == (4,)
    assert attachment.taps == Taps((0, 1, 2, 3))
    with torch.no_grad():
        attachment.trainables["layer_bias"].copy_(torch.tensor([0.0, 60.0, 0.0, 0.0]))
        attachment.trainables["query"].zero_()
        attachment.trainables["gate"].fill_(1.0)
    plain = plain_model("t5")
    plain.get_submodule("decoder").block = plain.get_submodule("decoder").block[:1]
    assert_near(logprobs(model), plain_logprobs(plain, usual_rows()))


def test_a_ladder_has_a_side_stack_beside_each_and_as_many_numbers_as_the_paper_s() -> None:
    with torch.device("meta"):
        # 9 of 12 rungs in either stack
        config = AutoConfig.for_model("t5", **{**T5_BASE, "num_layers": 9, "vocab_size": 64})
        hf = AutoModelForSeq2SeqLM.from_config(config)
    model = LanguageModel(hf, tiny_tokenizer(), read_anatomy(hf, family_of("t5")), Identity("t5", ""))
    hf.get_submodule("shared").weight = nn.Parameter(torch.randn(64, 768))  # whose channels are ranked
    count = Ladder(start="random").attach(model, "default", seed=0).num_trainable
    unused_gates, last_gate = 3 + 3, 1  # the paper's code has gates for layers without a rung, and no last gate
    assert count == 3_878_712 - unused_gates + last_gate


@pytest.mark.parametrize("name", ["t5", "t5-gated"])
def test_side_stacks_beside_some_layers_have_their_stacks_bias_of_positions(name: str) -> None:
    model = tiny_model(name)
    Ladder(reduction=2, every=2).attach(model, "default", seed=0)
    side = model.sides["default"]
    assert isinstance(side, LadderSide)
    assert (side._read, side._kept) == ((1,), (0, 2))
    for stack in ("encoder", "decoder"):
        place = f"{stack}.block.0.layer.0.SelfAttention"
        own, base = (hf.get_parameter(f"{place}.relative_attention_bias.weight") for hf in (side.small, model.hf))
        assert torch.equal(own, base)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_both_side_stacks_matter_and_nothing_of_the_base_has_a_graph(name: str) -> None:
    model = tiny_model(name)
    attachment = Ladder(reduction=2).attach(model, "default", seed=0)
    with torch.no_grad():
        attachment.trainables["gate"].fill_(0.5)
    graphs: list[bool] = []
    for layer in model.anatomy.layers:
        module = model.hf.get_submodule(layer.name)
        module.register_forward_hook(lambda m, a, out: graphs.append(torch.is_grad_enabled()))
    logprob_N = model.forward(usual_batch(model, "default"), "default").logprob_N
    assert graphs == [False] * 5
    gradients = torch.autograd.grad(logprob_N.sum(), list(attachment.trainables.values()))
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


# ── peft ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", [LoRA(rank=3, alpha=5), IA3(), PromptTuning(num_virtual_tokens=4)])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_peft_computes_the_same_from_what_is_written(name: str, method: Method, tmp_path: Path) -> None:
    model = tiny_model(name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    attachment.write(tmp_path, quiet)
    theirs = PeftModel.from_pretrained(plain_model(name), tmp_path)
    assert theirs.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert_near(plain_logprobs(theirs, usual_rows()), logprobs(model))


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (LoraConfig(task_type="SEQ_2_SEQ_LM", r=3, target_modules=["q", "v"]), LoRA),
        (IA3Config(task_type="SEQ_2_SEQ_LM"), IA3),
        (
            PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_transformer_submodules=1),
            PromptTuning,
        ),
    ],
    ids=["lora", "ia3", "prompt-tuning"],
)
def test_what_peft_saves_computes_the_same_here(config: Any, method: type[Any], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        theirs = get_peft_model(plain_model("t5"), config).eval()
    for index, parameter in enumerate(p for p in theirs.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.3)
    theirs.save_pretrained(tmp_path)
    model = tiny_model("t5")
    method(begin_from=str(tmp_path)).attach(model, "default", seed=0)
    assert_near(logprobs(model), plain_logprobs(theirs, usual_rows()))


# ── counts of published models, by arithmetic on their shapes ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("shape", "method", "count"),
    [
        (T0_3B, LoRA(rank=4, targets="all-linear"), 8_847_360),
        (T0_3B, LNTuning(), 249_856),
        (T0_3B, Pfeiffer(width=64), 12_684_288),
        (T0_3B, IA3(), 540_672),
        (T0_3B, PromptTuning(num_virtual_tokens=10, init="random"), 40_960 // 2),  # the sheet prompts both stacks
        (T5_BASE, Compacter(plus=True, width=24, blocks=4), 57_088),
        (T5_BASE, LNTuning(), 47_616),
    ],
    ids=lambda value: value.kind if isinstance(value, Method) else str(value)[:20],
)
def test_the_counts_are_the_published_ones(shape: dict[str, Any], method: Method, count: int) -> None:
    with torch.device("meta"):
        hf = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", **shape))
    hf.requires_grad_(False)
    model = LanguageModel(hf, tiny_tokenizer(), read_anatomy(hf, family_of("t5")), Identity("t5", ""))
    assert method.attach(model, "default", seed=0).num_trainable == count
