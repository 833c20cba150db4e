"""LoRA: what it wraps, where it starts, what trains, and that folding it in changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import NAMES, plain_model, tiny_model
from models.tuned import LENGTHS, every_target, logprobs, plain_attention, randomize
from near import assert_apart, assert_near
from pydantic import ValidationError
from transformers import PreTrainedModel

from luthier.errors import RecipeError, TargetNotFound
from luthier.methods import LoRA
from luthier.models.language_model import LanguageModel

CORNERS = ("llama", "gemma3_text", "gpt2", "gpt_neox", "opt", "phi3", "falcon-new")


def linear_targets(model: LanguageModel) -> tuple[str, ...]:
    """The last parts of the names of all linear layers."""
    return tuple(dict.fromkeys(name.rsplit(".", 1)[-1] for name in model.anatomy.linears))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_adapter_changes_nothing(name: str) -> None:
    model = tiny_model(name)
    before = logprobs(model, None)
    LoRA(targets=every_target(model), dropout=0.5).attach(model, "default", seed=0)
    assert_near(logprobs(model), before, 1e-6)


@pytest.mark.parametrize("name", CORNERS)
def test_only_the_adapter_gets_gradients_and_the_base_stays_as_it_was_bit_for_bit(name: str) -> None:
    model = tiny_model(name)
    base = {key: value.clone() for key, value in model.hf.state_dict().items()}
    attachment = LoRA(rank=2).attach(model, "default", seed=0)
    trained = list(attachment.trainables.values())
    assert {id(p) for p in model.hf.parameters() if p.requires_grad} == {id(p) for p in trained}
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    before = logprobs(model)
    for _ in range(2):
        optimizer.zero_grad()
        (-model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()).backward()
        optimizer.step()
    assert_apart(logprobs(model), before)
    after = {
        key.replace(".base.", "."): value for key, value in model.hf.state_dict().items() if ".branches." not in key
    }
    assert set(after) == set(base)
    assert all(torch.equal(after[key], base[key]) for key in base)


@pytest.mark.parametrize("name", CORNERS)
def test_the_count_of_trained_numbers_is_the_sum_of_rank_times_inputs_plus_outputs(name: str) -> None:
    model = tiny_model(name)
    plain = dict(plain_model(name).named_modules())
    shapes = [plain[target].weight.shape for target in every_target(model)]
    attachment = LoRA(rank=3, targets=every_target(model)).attach(model, "default", seed=0)
    assert attachment.num_trainable == sum(3 * (one + other) for one, other in shapes)


@pytest.mark.parametrize("name", NAMES)
def test_merged_computes_the_same_function_and_is_plain_transformers_again(name: str) -> None:
    model = tiny_model(name)
    attachment = LoRA(rank=3, targets=every_target(model)).attach(model, "default", seed=0)
    randomize(attachment)
    unmerged = logprobs(model)
    assert_apart(unmerged, logprobs(model, None))
    attachment.merge()
    assert_near(logprobs(model, None), unmerged)
    assert isinstance(model.hf.get_submodule(model.anatomy.head), torch.nn.Linear)
    assert not any(".branches." in key for key in model.hf.state_dict())
    assert_near(plain_logprobs(as_plain(name, model), random_rows(LENGTHS)), unmerged)


def as_plain(name: str, model: LanguageModel) -> PreTrainedModel:
    """A plain transformers model with the weights of a merged one, its head untied."""
    plain = plain_model(name, plain_attention(name))
    head = plain.get_submodule(model.anatomy.head)
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    plain.load_state_dict(model.hf.state_dict())
    return plain


@pytest.mark.parametrize("side", ["embedding", "head"])
@pytest.mark.parametrize("name", ["gpt2", "gemma", "falcon"])
def test_merging_one_side_of_a_tied_head_leaves_the_other_side_as_it_was(name: str, side: str) -> None:
    model = tiny_model(name)
    anatomy = model.anatomy
    assert anatomy.is_head_tied
    table = model.hf.get_submodule(anatomy.embedding).get_parameter("weight").clone()
    attachment = LoRA(rank=3, targets=(getattr(anatomy, side),)).attach(model, "default", seed=0)
    randomize(attachment)
    unmerged = logprobs(model)
    attachment.merge()
    assert_near(logprobs(model, None), unmerged)
    other = anatomy.head if side == "embedding" else anatomy.embedding
    assert torch.equal(model.hf.get_submodule(other).get_parameter("weight"), table)
    assert not model.hf.config.tie_word_embeddings
    assert not model.anatomy.is_head_tied


def test_merging_without_embedding_or_head_leaves_them_tied() -> None:
    model = tiny_model("gpt2")
    LoRA(targets=("c_fc",)).attach(model, "default", seed=0).merge()
    assert model.anatomy.is_head_tied
    assert model.hf.config.tie_word_embeddings


def test_a_bf16_base_is_merged_in_fp32_and_rounded_once() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    name = model.anatomy.linears[0]
    before = model.hf.get_submodule(name).weight.float()
    attachment = LoRA(rank=2, alpha=6, targets=(name,)).attach(model, "default", seed=0)
    randomize(attachment)
    a, b = (tensor.detach().clone() for tensor in attachment.trainables.values())
    attachment.merge()
    merged = model.hf.get_submodule(name).weight
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, (before + 3.0 * (b @ a)).to(torch.bfloat16))


@pytest.mark.parametrize("name", NAMES)
def test_all_linear_is_every_named_linear_layer(name: str) -> None:
    adapted = []
    for targets in ("all-linear", linear_targets(tiny_model(name))):
        model = tiny_model(name)
        attachment = LoRA(targets=targets).attach(model, "default", seed=0)
        adapted.append([(key, tuple(p.shape)) for key, p in attachment.trainables.items()])
    assert adapted[0] == adapted[1]


@pytest.mark.parametrize(
    ("name", "target", "found"),
    [
        ("gpt2", "attn.c_proj", ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]),
        ("gpt2", "h.1.mlp.c_proj", ["transformer.h.1.mlp.c_proj"]),
        ("llama", "1.self_attn.q_proj", ["model.layers.1.self_attn.q_proj"]),
        ("llama", "embed_tokens", ["model.embed_tokens"]),
    ],
)
def test_a_target_is_the_end_of_a_name_from_a_whole_component_on(name: str, target: str, found: list[str]) -> None:
    attachment = LoRA(targets=(target,)).attach(tiny_model(name), "default", seed=0)
    assert sorted({key.split(".lora_")[0] for key in attachment.trainables}) == found


@pytest.mark.parametrize("target", ["proj", "attn.q_proj", "q_pro", "layers.0", "self_attn", "input_layernorm", ""])
def test_part_of_a_component_or_what_is_not_linear_matches_nothing_and_the_error_lists_what_would(target: str) -> None:
    with pytest.raises(TargetNotFound) as refused:
        LoRA(targets=("q_proj", target)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.targets"
    assert repr(target) in refused.value.found
    assert "down_proj" in refused.value.mend
    assert "all-linear" in refused.value.mend


@pytest.mark.parametrize("settings", [{"targets": ()}, {"layers": ()}, {"layers": (2,)}, {"layers": (-1,)}])
def test_no_layer_or_a_layer_that_is_not_there_is_refused_with_the_field(settings: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(RecipeError) as refused:
        LoRA(**settings).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == f"method.{next(iter(settings))}"


def test_one_target_may_be_given_as_a_word() -> None:
    assert LoRA.model_validate({"targets": "q_proj"}).targets == ("q_proj",)


def test_only_the_chosen_layers_are_adapted_and_backward_ends_there() -> None:
    model = tiny_model("llama")
    attachment = LoRA(layers=(1,)).attach(model, "default", seed=0)
    assert {key.split(".")[2] for key in attachment.trainables} == {"1"}
    assert attachment.lowest_layer == 1
    assert LoRA().attach(tiny_model("llama"), "default", seed=0).lowest_layer == 0
    assert LoRA(targets=("lm_head",)).attach(tiny_model("llama"), "default", seed=0).lowest_layer == 2
    assert LoRA(targets=("embed_tokens",)).attach(tiny_model("llama"), "default", seed=0).lowest_layer is None


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_alpha_over_rank_or_over_its_root_and_patterns_go_first(rslora: bool) -> None:
    lora = LoRA(
        rank=4,
        alpha=12,
        rslora=rslora,
        rank_pattern={"q_proj": 9, r"layers\.1\..*": 2},
        alpha_pattern={"0.mlp.up_proj": 5},
    )
    expected = {"model.layers.0.self_attn.q_proj": (9, 12), "model.layers.1.self_attn.q_proj": (9, 12)}
    expected |= {"model.layers.1.mlp.up_proj": (2, 12), "model.layers.0.mlp.up_proj": (4, 5), "lm_head": (4, 12)}
    for layer, (rank, alpha) in expected.items():
        assert lora.rank_of(layer) == rank
        assert lora.scale_of(layer) == pytest.approx(alpha / (rank**0.5 if rslora else rank))
    assert LoRA(rank=4).scale_of("x") == 2.0


def test_a_pattern_does_not_match_within_a_component() -> None:
    assert LoRA(rank=4, rank_pattern={"proj": 9}).rank_of("model.layers.0.self_attn.q_proj") == 4


def test_ranks_by_pattern_reach_the_tensors() -> None:
    attachment = LoRA(rank=4, rank_pattern={"k_proj": 7}).attach(tiny_model("llama"), "default", seed=0)
    ranks = {key: p.shape[0] for key, p in attachment.trainables.items() if key.endswith("lora_A.weight")}
    assert all(rank == (7 if "k_proj" in key else 4) for key, rank in ranks.items())


def test_lora_plus_gives_b_its_own_rate_and_each_tensor_one_group() -> None:
    attachment = LoRA(lr_ratio=16).attach(tiny_model("llama"), "default", seed=0)
    a, b = attachment.groups
    assert (a.lr_factor, b.lr_factor) == (1.0, 16.0)
    assert all("lora_A" in key for key in a.tensors)
    assert all("lora_B" in key for key in b.tensors)
    plain = LoRA().attach(tiny_model("llama"), "default", seed=0)
    assert set(a.tensors) | set(b.tensors) == set(plain.trainables)
    assert len(plain.groups) == 1


def test_a_tensor_starts_from_the_seed_and_its_name_alone() -> None:
    wide = LoRA(rank=4).attach(tiny_model("llama"), "default", seed=3).trainables
    narrow = LoRA(rank=4, targets=("q_proj", "embed_tokens")).attach(tiny_model("llama"), "default", seed=3).trainables
    shared = set(wide) & set(narrow)
    assert len(shared) == 4
    assert all(torch.equal(wide[key], narrow[key]) for key in shared)
    other = LoRA(rank=4).attach(tiny_model("llama"), "default", seed=4).trainables
    first, second = (f"model.layers.{i}.self_attn.q_proj.lora_A.weight" for i in (0, 1))
    assert not torch.equal(wide[first], other[first])
    assert not torch.equal(wide[first], wide[second])


def test_a_starts_uniform_within_one_over_the_root_of_its_inputs_and_b_at_zero() -> None:
    tensors = LoRA(rank=50).attach(tiny_model("llama"), "default", seed=0).trainables
    for key, tensor in tensors.items():
        if "lora_B" in key:
            assert not bool(tensor.any())
            continue
        bound = tensor.shape[1] ** -0.5
        assert float(tensor.detach().abs().max()) <= bound
        assert float(tensor.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_the_state_of_the_process_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    LoRA(targets=("q_proj", "embed_tokens")).attach(tiny_model("llama"), "default", seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_second_adapter_shares_the_bank_and_leaves_the_first_as_it_was() -> None:
    model = tiny_model("llama")
    first = LoRA(rank=2).attach(model, "first", seed=0)
    randomize(first)
    alone = logprobs(model, "first")
    second = LoRA(rank=5, targets=("q_proj",)).attach(model, "second", seed=1)
    randomize(second, 0.3)
    assert_near(logprobs(model, "first"), alone, 1e-7)
    assert_apart(logprobs(model, "second"), alone)


def test_merging_one_of_two_adapters_keeps_the_other_at_work() -> None:
    model = tiny_model("llama")
    first, second = LoRA(rank=2).attach(model, "first", seed=0), LoRA(rank=5).attach(model, "second", seed=1)
    randomize(first)
    randomize(second, 0.3)
    reference = tiny_model("llama")
    baked = LoRA(rank=2).attach(reference, "first", seed=0)
    randomize(baked)
    baked.merge()
    randomize(LoRA(rank=5).attach(reference, "second", seed=1), 0.3)
    first.merge()
    assert_near(logprobs(model, "second"), logprobs(reference, "second"))


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"alpha": 0},
        {"alpha": float("inf")},
        {"dropout": 1.0},
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": {"q_proj": -1.0}},
        {"rank_pattern": {"(": 4}},
        {"lr_ratio": 0.5},
        {"lr_ratio": float("inf")},
        {"r": 8},
    ],
)
def test_values_that_make_no_lora_are_refused_by_the_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LoRA.model_validate(settings)


def test_the_wrapped_model_still_answers_for_the_base_layers_weight_and_bias() -> None:
    for name in ("llama", "gpt2"):
        plain, model = plain_model(name), tiny_model(name)
        target = model.anatomy.linears[0]
        LoRA(targets=(target,)).attach(model, "default", seed=0)
        wrapped, frozen = model.hf.get_submodule(target), copy.deepcopy(plain.get_submodule(target))
        weight = frozen.weight.t() if name == "gpt2" else frozen.weight
        assert torch.equal(wrapped.weight, weight)
        assert torch.equal(wrapped.bias, frozen.bias)
