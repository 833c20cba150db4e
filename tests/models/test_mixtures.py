"""Mixtures of experts: what a router sends to an expert passes its adapter, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of
from models.tiny import MIXTURES, plain_model, tiny_model
from models.tuned import logprobs, quiet, random_lora
from near import assert_apart, assert_near
from safetensors.torch import load_file, save_file
from tiny_experts import write_tiny_experts
from tiny_runs import begin, course, one_thread, recipe_values, write_rows
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.errors import RecipeError, TargetNotFound
from luthier.methods import IA3, Houlsby, KronAB, Ladder
from luthier.models.anatomy import find_targets
from luthier.models.call import Draws
from luthier.models.experts import MixtureEnd, SplitExperts
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.models.writing import write_model
from luthier.quantization.packed import QuantizedLinear
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe import make_recipe
from luthier.tuned import load_merged, load_run

UP, DOWN = "gate_up_proj", "down_proj"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LAST = "model.layers.1.mlp.experts"


def chosen_NK(model: LanguageModel, batch: Any) -> Tensor:
    """Which experts the last layer's router chooses for each token."""
    seen: list[Tensor] = []
    handle = model.hf.get_submodule(LAST).register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    model.forward(batch, None)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", MIXTURES)
def test_the_loss_is_that_of_transformers_without_the_routers_own(name: str) -> None:
    model, plain = tiny_model(name), plain_model(name)
    batch = batch_of([9], model.layout)
    out = model.forward(batch, None)
    labels_BT = torch.full_like(batch.tokens_BT, -100)
    labels_BT[0, batch.targets.source_N + 1] = batch.targets.token_N
    theirs = plain(batch.tokens_BT, labels=labels_BT)
    assert_near(-out.logprob_N.mean(), theirs.loss, 1e-5)
    model.hf.set_attn_implementation("eager")
    assert_near(model.hf(batch.tokens_BT).logits, theirs.logits, 1e-5)


@pytest.mark.parametrize("name", MIXTURES)
def test_all_linear_is_attention_and_every_expert_and_no_router(name: str) -> None:
    anatomy = tiny_model(name).anatomy
    endings = {
        "mixtral": (),
        "gpt_oss": (),
        "qwen2_moe": ("gate_proj", "up_proj", DOWN),
        "qwen3_moe": ("gate_proj", "up_proj", DOWN),
    }
    found = find_targets(anatomy, "all-linear", None)
    assert {each.rpartition(".")[2] for each in found} == {*ATTENTION, UP, DOWN, *endings[name]}
    assert not any("router" in each or each.endswith(("mlp.gate", "shared_expert_gate")) for each in found)
    mixtures = [layer for layer in anatomy.layers if layer.mixture]
    assert len(mixtures) == (1 if name == "qwen3_moe" else 2)
    assert set(anatomy.experts) == {
        f"{layer.feedforward}.experts.{expert}.{projection}"
        for layer in mixtures
        for expert in range(4 if name.startswith("qwen") else 3)
        for projection in (UP, DOWN)
    }
    shared = len(mixtures) if name == "qwen2_moe" else 0
    dense = len(anatomy.layers) - len(mixtures)
    for role in ("up", "down"):
        assert len(anatomy.of_role(role)) == len(anatomy.experts) // 2 + shared + dense


def test_a_gate_of_the_shared_expert_is_adapted_only_if_it_is_named() -> None:
    model = tiny_model("qwen2_moe")
    gates = tuple(f"model.layers.{index}.mlp.shared_expert_gate" for index in range(2))
    assert model.anatomy.routers == gates
    assert find_targets(model.anatomy, ("shared_expert_gate",), None) == gates
    before = logprobs(model, None)
    random_lora(model, targets=("shared_expert_gate",))
    assert_apart(logprobs(model), before)
    with pytest.raises(TargetNotFound, match="called 'gate'"):
        find_targets(model.anatomy, ("gate",), None)


@pytest.mark.parametrize("name", MIXTURES)
def test_only_the_tokens_that_a_router_sends_to_an_expert_pass_its_adapter(name: str) -> None:
    model = tiny_model(name)
    batch = batch_of([12, 7], model.layout)
    chosen = chosen_NK(model, batch)
    experts = model.hf.get_submodule(LAST)
    seen: list[Tensor] = []
    experts.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    counts_E = chosen.flatten().bincount().float()
    expert = int(counts_E.masked_fill(counts_E == 0, torch.inf).argmin())
    for projection in (UP, DOWN):
        random_lora(model, f"of {projection}", targets=(f"{LAST}.{expert}.{projection}",))
    for adapter in (None, f"of {UP}", f"of {DOWN}"):
        model.forward(batch, adapter)
    is_sent_N = (chosen == expert).any(-1)
    assert bool(is_sent_N.any())
    assert not bool(is_sent_N.all())
    for with_adapter in seen[1:]:
        moved_N = (with_adapter != seen[0]).any(-1)
        assert torch.equal(moved_N, is_sent_N)


@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_an_expert_that_no_token_is_sent_to_gets_no_gradient(name: str) -> None:
    model = tiny_model(name)
    attachment = random_lora(model)
    batch = batch_of([2], model.layout)
    seen = int(batch.targets.source_N.max()) + 1  # what comes after it no loss depends on
    used = {index: set(chosen[:seen].flatten().tolist()) for index, chosen in every_choice(model, batch).items()}
    count = 4 if name == "qwen2_moe" else 3
    unused = {index: set(range(count)) - experts for index, experts in used.items()}
    loss = model.forward(batch, "default").logprob_N.sum()
    gradients = torch.autograd.grad(loss, list(attachment.trainables.values()), allow_unused=True)
    touched = {
        key for key, each in zip(attachment.trainables, gradients, strict=True) if each is not None and bool(each.any())
    }
    idle = {
        f"model.layers.{layer}.mlp.experts.{expert}.{projection}.lora_{side}.weight"
        for layer, experts in unused.items()
        for expert in experts
        for projection in (UP, DOWN)
        for side in "AB"
    }
    # the one token that is read attends to itself alone, whatever its query and key
    moot = {key for key in attachment.trainables if "q_proj" in key or "k_proj" in key}
    assert idle
    assert touched - moot == set(attachment.trainables) - idle - moot


def every_choice(model: LanguageModel, batch: Any) -> dict[int, Tensor]:
    """Which experts each layer's router chooses, with the model's adapter."""
    seen: dict[int, Tensor] = {}
    handles = [
        model.hf.get_submodule(f"{layer.feedforward}.experts").register_forward_pre_hook(
            lambda _, args, index=layer.index: seen.__setitem__(index, args[1])
        )
        for layer in model.anatomy.layers
    ]
    model.forward(batch, "default")
    for handle in handles:
        handle.remove()
    return seen


def test_what_dropout_drops_for_a_token_does_not_depend_on_who_else_is_sent_to_its_expert() -> None:
    model = tiny_model("mixtral")
    random_lora(model, dropout=0.4)
    draws = Draws(3, 1)
    together = model.forward(batch_of([9, 6], model.layout), "default", draws).logprob_N
    alone = model.forward(batch_of([9], model.layout), "default", draws).logprob_N
    assert_near(together[: len(alone)], alone)
    assert_apart(model.forward(batch_of([9], model.layout), "default").logprob_N, alone)


def test_shares_may_be_of_each_choice_or_of_each_expert() -> None:
    experts = tiny_model("mixtral").hf.get_submodule(LAST)
    assert isinstance(experts, SplitExperts)
    x_ND, share_NE = torch.randn(5, 32), torch.rand(5, 3)
    share_NK, chosen = share_NE.topk(2)
    assert_near(experts(x_ND, chosen, share_NE), experts(x_ND, chosen, share_NK), 1e-6)


def test_an_adapter_after_the_feed_forward_reads_what_the_whole_mixture_gives() -> None:
    model = tiny_model("qwen2_moe")
    attachment = Houlsby(width=5, sublayers=("feedforward",), layers=(1,)).attach(model, "default", seed=0)
    (place,) = attachment.layers
    assert place == "model.layers.1.mlp.end"
    assert isinstance(model.hf.get_submodule(place).base, MixtureEnd)
    for tensor in attachment.trainables.values():
        tensor.data.normal_(generator=torch.Generator().manual_seed(1))
    plain = plain_model("qwen2_moe")
    adapter = attachment.layers[place].branch("default").added
    plain.get_submodule("model.layers.1.mlp").register_forward_hook(lambda *args: args[2] + adapter(args[2]))
    batch = batch_of([8], model.layout)
    hidden_TD = model.hidden(batch, "default")[0]
    assert_near(hidden_TD, plain.model(batch.tokens_BT).last_hidden_state[0], 1e-5)


def test_inputs_of_every_expert_s_last_layer_are_scaled_by_default() -> None:
    model = tiny_model("qwen2_moe")
    attachment = IA3().attach(model, "default", seed=0)
    assert attachment.num_trainable == 2 * (2 * 16 + 4 * 24 + 48)


@pytest.mark.parametrize("method", [Ladder(reduction=2), KronAB()])
def test_methods_that_need_one_end_are_refused(method: Any) -> None:
    with pytest.raises(RecipeError, match="mixtures of experts") as refused:
        method.attach(tiny_model("mixtral"), "default", seed=0)
    assert refused.value.field == "method.kind"


# ── files and runs ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=["mixtral", "qwen2_moe", "qwen3_moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a family in a folder, its experts one by one in the file as released ones have them."""
    written = write_tiny_experts(tmp_path_factory.mktemp(request.param), family=request.param)
    assert any("experts.0." in name for name in load_file(written / "model.safetensors"))
    return written


def loaded(folder: Path, **quantization: Any) -> LanguageModel:
    settings = ModelSettings(name=str(folder), dtype="fp32", device="cpu")
    return load_model(settings, quiet, quantization=QuantizationSettings(**quantization) if quantization else None)


def theirs(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def logits(model: LanguageModel, adapter: str | None = None) -> Tensor:
    batch = batch_of([9], model.layout)
    head = model.hf.get_submodule("lm_head")
    return head(model.hidden(batch, adapter)).detach()


def test_a_merged_model_is_written_as_transformers_has_it(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder)
    tokens_BT = batch_of([9], model.layout).tokens_BT
    assert_near(logits(model), theirs(folder)(tokens_BT).logits, 1e-5)
    attachment = random_lora(model)
    expected = logits(model, "default")
    attachment.merge()
    write_model(model, tmp_path, torch.float32)
    assert_near(theirs(tmp_path)(tokens_BT).logits, expected, 1e-5)
    assert {*load_file(tmp_path / "model.safetensors")} == {*load_file(folder / "model.safetensors")}


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_every_expert_is_packed_by_itself_and_its_router_is_not(kind: str, folder: Path) -> None:
    plain, model = loaded(folder), loaded(folder, kind=kind)
    packed = {name for name, module in model.hf.named_modules() if isinstance(module, QuantizedLinear)}
    assert packed == set(model.anatomy.linears) == set(plain.anatomy.linears)
    for name in model.anatomy.experts:
        whole = plain.hf.get_submodule(name).weight
        assert float((model.hf.get_submodule(name).dense() - whole).norm()) < 0.15 * float(whole.norm())


METHODS = {
    "full": {"kind": "full", "rank": None},
    "lora": {"kind": "lora"},
    "lora over nf4": {"kind": "lora"},
    "loftq over nf4": {"kind": "loftq"},
    "pissa over nf4": {"kind": "pissa"},
}


@pytest.mark.parametrize(
    ("folder", "name"),
    [*(("mixtral", name) for name in METHODS), ("qwen2_moe", "lora over nf4"), ("qwen3_moe", "full")],
    indirect=["folder"],
)
def test_a_run_learns_and_its_merged_model_is_transformers_own(name: str, folder: Path, tmp_path: Path) -> None:
    over = {"quantization": {"kind": "nf4"}} if "nf4" in name else {}
    values = recipe_values(folder, write_rows(tmp_path / "rows.jsonl", 8), method=METHODS[name], **over)
    values["training"] |= {"steps": 8, "peak_lr": 0.003 if name == "full" else 0.02}
    with one_thread():
        begin(values, tmp_path / "run")
        losses = [line["loss"] for line in course(tmp_path / "run")]
        assert losses[-1] < losses[0] - 0.1
        tuned = load_run(tmp_path / "run", quiet)
        merged = load_merged(tmp_path / "run", make_recipe(values), quiet)
    expected = logits(tuned, None if name == "full" else "default")
    write_model(merged, tmp_path / "out", torch.float32)
    tokens_BT = batch_of([9], tuned.layout).tokens_BT
    assert_near(theirs(tmp_path / "out")(tokens_BT).logits, expected, 1e-4)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (("qweight", "qzeros", "scales"), {"quant_method": "gptq", "bits": 4, "group_size": 32}),
        (
            ("weight", "weight.absmax"),
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        ),
    ],
    ids=["gptq", "bitsandbytes"],
)
def test_experts_that_came_quantized_one_by_one_are_refused_with_the_mend(
    parts: tuple[str, ...], said: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        del tensors[name]
        tensors |= {name.removesuffix("weight") + part: torch.zeros(2, dtype=torch.int32) for part in parts}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(RecipeError, match="experts quantized one by one") as refused:
        loaded(tmp_path)
    assert "quantization" in refused.value.mend
