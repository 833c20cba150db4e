"""AdaMix: how experts are drawn, what the two passes cost, and what the experts average to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.beside import gradients
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, quiet, randomize
from near import assert_all_near, assert_apart, assert_near
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from luthier.data.packing import collate
from luthier.errors import RecipeError, TargetNotFound
from luthier.methods import AdaMix, Houlsby, LoRA
from luthier.methods.adamix import AdaMixAttachment, AdapterHost, LoRAHost, routed
from luthier.methods.sublayers import End
from luthier.models.call import Call, Draws, Run, calling
from luthier.models.language_model import LanguageModel, Outputs
from luthier.objectives import SFT
from luthier.types import Example

BOTTLENECKS = AdaMix(host=AdapterHost(width=6), experts=3)
UPDATES = AdaMix(host=LoRAHost(rank=3, alpha=5), experts=3)
ROWS = random_rows(LENGTHS)
STEP = 2
"""A step whose two passes draw apart in both hosts."""
HOSTS = [pytest.param(BOTTLENECKS, id="adapter"), pytest.param(UPDATES, id="lora")]


def attached(method: AdaMix, name: str = "llama", **changes: Any) -> tuple[LanguageModel, AdaMixAttachment]:
    """A tiny model with random experts."""
    model = tiny_model(name)
    attachment = method.model_copy(update=changes).attach(model, "default", seed=0)
    randomize(attachment, 0.2)
    return model, attachment


def loss(model: LanguageModel, attachment: AdaMixAttachment, rows: Sequence[Example]) -> Tensor:
    """The summed loss of rows, as the loop asks for it."""
    batch, objective = collate(rows, model.layout, 0), SFT()

    def forward(repeat: int) -> Outputs:
        return model.forward(batch, attachment.adapter, Draws(7, STEP, repeat))

    return attachment.loss_sum(forward, objective.loss_sum)


def drawn(site: str, count: int, step: int, repeat: int = 0, seed: int = 7) -> int:
    """Which of so many experts a site draws."""
    with calling(Call(None, (Run(0, 1, "default"),), draws=Draws(seed, step, repeat))):
        (chosen,) = routed(site, torch.arange(count))
    return int(chosen)


def test_every_expert_is_drawn_equally_often_and_downs_and_ups_independently() -> None:
    downs = [drawn("place.down", 3, step) for step in range(3000)]
    ups = [drawn("place.up", 3, step) for step in range(3000)]
    for index in range(3):
        assert abs(downs.count(index) - 1000) < 4 * (3000 * (1 / 3) * (2 / 3)) ** 0.5
        for other in range(3):
            both = sum(pair == (index, other) for pair in zip(downs, ups, strict=True))
            assert abs(both - 3000 / 9) < 4 * (3000 * (1 / 9) * (8 / 9)) ** 0.5


def test_another_seed_step_pass_or_place_draws_anew() -> None:
    base = [drawn("place", 4, step) for step in range(400)]
    others = [
        [drawn("place", 4, step, seed=8) for step in range(400)],
        [drawn("place", 4, step + 1) for step in range(400)],
        [drawn("place", 4, step, repeat=1) for step in range(400)],
        [drawn("elsewhere", 4, step) for step in range(400)],
    ]
    assert base == [drawn("place", 4, step) for step in range(400)]
    for other in others:
        agreement = sum(one == two for one, two in zip(base, other, strict=True))
        assert abs(agreement - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("method", HOSTS)
def test_a_pass_trains_only_the_experts_that_it_draws(method: AdaMix) -> None:
    model, attachment = attached(method, consistency=0.0)
    tensors = attachment.trainables
    gradient = torch.autograd.grad(loss(model, attachment, ROWS), list(tensors.values()))
    for (key, tensor), grad in zip(tensors.items(), gradient, strict=True):
        place = next(layer for layer in attachment.layers if key.startswith(layer + "."))
        side = "down" if "_down" in key or "lora_A" in key else "up"
        chosen = drawn(f"{place}.{side}", len(tensor), STEP)
        assert [index for index, expert in enumerate(grad) if bool(expert.any())] == [chosen], key


@pytest.mark.parametrize("shares_up", [True, False])
@pytest.mark.parametrize("method", HOSTS)
def test_without_draws_the_projections_are_the_means_of_the_experts(method: AdaMix, shares_up: bool) -> None:
    model, mixture = attached(method, shares_up=shares_up)
    single = tiny_model("llama")
    attachment = method.deployed.attach(single, "default", seed=3)
    for key, tensor in attachment.trainables.items():
        assert len(mixture.trainables[key]) == (1 if shares_up and ("_up" in key or "lora_B" in key) else 3)
        tensor.data.copy_(mixture.trainables[key].detach().mean(0))
    assert_near(logprobs(model), logprobs(single))


@pytest.mark.parametrize("method", HOSTS)
def test_one_expert_is_the_plain_adapter_from_its_start_to_its_gradients(method: AdaMix) -> None:
    alone = method.model_copy(update={"experts": 1})
    for size in (None, 0.2):
        results = []
        for one in (alone, alone.deployed):
            model = tiny_model("llama")
            attachment = one.attach(model, "default", seed=5)
            if size is not None:
                randomize(attachment, size)
            logprob_N = model.forward(batch_of(LENGTHS, "packed"), "default", Draws(1, 2)).logprob_N
            tensors = attachment.trainables
            grads = torch.autograd.grad(logprob_N.sum(), list(tensors.values()))
            results.append({key: grad.reshape(-1) for key, grad in zip(tensors, grads, strict=True)})
            results[-1] |= {f"start of {key}": tensor.detach().reshape(-1) for key, tensor in tensors.items()}
        assert_all_near(*results)


@pytest.mark.parametrize("method", HOSTS)
def test_the_loss_is_that_of_one_pass_and_the_weighted_divergence_of_two(method: AdaMix) -> None:
    model, attachment = attached(method, consistency=2.5)
    batch = batch_of(LENGTHS, "packed")
    logits = []
    for repeat in (0, 1):
        hidden_ND = model.hidden(batch, "default", Draws(7, STEP, repeat)).flatten(0, 1)[batch.targets.source_N]
        logits.append((hidden_ND @ model.hf.get_submodule("lm_head").get_parameter("weight").T).log_softmax(-1))
    p, q = logits
    divergence_N = 0.5 * ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1))
    logprob_N = p.gather(-1, batch.targets.token_N[:, None])[:, 0]
    expected = ((2.5 * divergence_N - logprob_N) * batch.targets.weight_N).sum()
    assert_near(loss(model, attachment, ROWS), expected)
    assert float(divergence_N.detach().sum()) > 1e-3


def test_passes_that_draw_alike_cost_nothing_more() -> None:
    for method in (BOTTLENECKS, UPDATES):
        model, attachment = attached(method, experts=1)
        assert_near(loss(model, attachment, ROWS), loss(*attached(method, experts=1, consistency=0.0), ROWS), 1e-6)


@pytest.mark.parametrize("method", HOSTS)
def test_micro_batches_of_a_step_draw_the_same_and_sum_to_the_whole(method: AdaMix) -> None:
    model, attachment = attached(method)
    parts = [loss(model, attachment, [row]) for row in ROWS]
    assert_near(torch.stack(parts).sum(), loss(model, attachment, ROWS))


@pytest.mark.parametrize("name", ["llama", "gemma2", "falcon"])
@pytest.mark.parametrize("method", HOSTS)
def test_checkpointed_layers_draw_the_same_experts_again(method: AdaMix, name: str) -> None:
    kept, recomputed = (
        gradients(name, lambda m: method.attach(m, "default", seed=0), checkpointed, Draws(3, 4))
        for checkpointed in (False, True)
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))


def test_trained_and_deployed_counts_are_the_published_ones() -> None:
    layer = tiny_model("llama").anatomy.layers[0]
    for width, hidden, layers, trained, deployed in ((16, 1024, 24, 1_992_192, 811_392), (48, 768, 12, None, 894_528)):
        method = AdaMix(host=AdapterHost(width=width))
        single = method.deployed
        assert isinstance(single, Houlsby)
        side = method.bottlenecks(End("place", layer, hidden, 1.0), single, 0, torch.device("cpu"))
        if trained is not None:
            assert layers * sum(tensor.numel() for tensor in side.tensors.values()) == trained
        assert layers * sum(tensor.numel() for tensor in side.file_tensors().values()) == deployed


@pytest.mark.parametrize("shares_up", [True, False])
def test_the_count_is_that_of_the_formula(shares_up: bool) -> None:
    ups = 1 if shares_up else 3
    _, bottlenecks = attached(BOTTLENECKS, shares_up=shares_up)
    assert bottlenecks.num_trainable == 2 * (3 * (32 * 6 + 6) + ups * (6 * 32 + 32))
    model, updates = attached(UPDATES, shares_up=shares_up)
    banks = [model.hf.get_submodule(name) for name in model.anatomy.linears]
    assert updates.num_trainable == sum(3 * (3 * b.weight.shape[1] + ups * b.weight.shape[0]) for b in banks)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-new"])
def test_averaged_updates_are_an_ordinary_lora_to_peft_and_merge_as_one(name: str, tmp_path: Path) -> None:
    model, attachment = attached(UPDATES, name, shares_up=False)
    expected = logprobs(model)
    (tmp_path / "adapter").mkdir()
    attachment.write(tmp_path / "adapter", quiet)
    attention = "sdpa" if name.startswith("falcon") else "eager"
    loaded = PeftModel.from_pretrained(plain_model(name, attention), tmp_path / "adapter")
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), expected)
    fresh = tiny_model(name)
    continued = UPDATES.continued(tmp_path)
    assert isinstance(continued, LoRA)
    continued.attach(fresh, "default", seed=9)
    assert_near(logprobs(fresh), expected)
    attachment.merge()
    assert_near(logprobs(model, None), expected)


def test_averaged_bottlenecks_are_a_houlsby_adapter_of_the_feedforward(tmp_path: Path) -> None:
    model, attachment = attached(BOTTLENECKS, layers=(1,))
    attachment.write(tmp_path, quiet)
    fresh = tiny_model("llama")
    Houlsby.model_validate({"from": str(tmp_path), "sublayers": ["feedforward"], "width": 6}).attach(
        fresh, "default", 0
    )
    assert_near(logprobs(fresh), logprobs(model))
    assert_apart(logprobs(fresh), logprobs(fresh, None))


def test_only_dropout_draws_for_each_document() -> None:
    assert not attached(BOTTLENECKS)[1].draws
    assert not attached(UPDATES)[1].draws
    assert attached(AdaMix(host=LoRAHost(dropout=0.1)))[1].draws


def test_experts_of_a_place_start_apart() -> None:
    for method in (BOTTLENECKS, UPDATES):
        for key, tensor in method.attach(tiny_model("llama"), "default", seed=0).trainables.items():
            if key.endswith(("down.weight", "lora_A.weight")):
                assert_apart(tensor[0], tensor[1])


@pytest.mark.parametrize(
    ("targets", "error"), [(("nowhere",), TargetNotFound), ((), RecipeError), (("embed_tokens",), RecipeError)]
)
def test_places_without_a_linear_layer_are_refused_by_the_hosts_field(
    targets: tuple[str, ...], error: type[RecipeError]
) -> None:
    with pytest.raises(error) as refused:
        AdaMix(host=LoRAHost(targets=targets)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.host.targets"
    assert refused.value.mend


@pytest.mark.parametrize(
    "settings",
    [{"experts": 0}, {"consistency": -1}, {"host": {"kind": "lora", "width": 3}}, {"host": {"kind": "prefix"}}],
)
def test_values_that_make_no_mixture_are_refused_by_the_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AdaMix.model_validate(settings)
