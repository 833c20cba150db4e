"""The roles of a layer's linear layers: named for every family, and what lies where in a fused projection."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.rows import random_rows
from models.tiny import CONFIGS, NAMES, plain_model, tiny_model
from models.tuned import plain_attention
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.errors import TargetNotFound
from luthier.models.anatomy import Anatomy, find_targets, fused_outputs
from luthier.models.families import family_of

ROLES = ("query", "key", "value", "attention_out", "up", "down")
FUSED = tuple(name for name in NAMES if family_of(CONFIGS[name][0]).roles.fused is not None)


@pytest.mark.parametrize("name", NAMES)
def test_every_role_names_a_linear_layer_of_every_layer(name: str) -> None:
    anatomy = tiny_model(name).anatomy
    for role in ROLES:
        assert len(set(anatomy.of_role(role)) & set(anatomy.linears)) == len(anatomy.layers)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_linear_layers_take_what_attention_and_the_feed_forward_block_have_made(name: str) -> None:
    model = tiny_model(name)
    for layer in model.anatomy.layers:
        up, down, out = (model.hf.get_submodule(layer.roles[role]) for role in ("up", "down", "attention_out"))
        inputs = [weight_of(module).shape[1] for module in (up, down, out)]
        outputs = [weight_of(module).shape[0] for module in (up, down, out)]
        inner = 4 * 32 if name == "bloom" else 40  # for which it has no setting
        assert inputs == [32, inner, 32]
        assert outputs[1:] == [32, 32]
        assert outputs[0] in (inner, 2 * inner)  # a gate may come with it


def weight_of(module: torch.nn.Module) -> Tensor:
    """The weight as (O, I), of which the tensor shares the memory."""
    weight = module.get_parameter("weight")
    return weight.t() if isinstance(module, Conv1D) else weight


@pytest.mark.parametrize("name", FUSED)
def test_queries_keys_and_values_share_out_all_outputs_of_a_fused_layer(name: str) -> None:
    model = tiny_model(name)
    weight = weight_of(model.hf.get_submodule(model.anatomy.of_role("query")[0]))
    outputs = fused_outputs(model.hf.config, model.anatomy.family, len(weight))
    assert torch.equal(torch.cat(list(outputs.values())).sort().values, torch.arange(len(weight)))
    assert len(outputs["query"]) == 32
    assert len(outputs["key"]) == len(outputs["value"]) == (len(weight) - 32) // 2


@pytest.mark.parametrize("name", FUSED)
def test_without_values_attention_gives_nothing_and_without_keys_the_queries_do_not_matter(name: str) -> None:
    assert bool((attended(name, {"value": 0.0}) == 0).all())
    keyless = attended(name, {"key": 0.0})
    assert bool((keyless != 0).any())
    torch.testing.assert_close(attended(name, {"key": 0.0, "query": 3.0}), keyless, rtol=0, atol=1e-6)
    assert float((attended(name, {"query": 3.0}) - attended(name, {})).abs().max()) > 1e-3


def attended(name: str, factors: dict[str, float]) -> Tensor:
    """What enters the first layer's last attention layer, some outputs of its fused projection multiplied."""
    hf = plain_model(name, plain_attention(name))
    anatomy = tiny_model(name).anatomy
    fused, out = (hf.get_submodule(anatomy.of_role(role)[0]) for role in ("query", "attention_out"))
    outputs = fused_outputs(hf.config, anatomy.family, len(weight_of(fused)))
    for role, factor in factors.items():
        weight_of(fused)[outputs[role]] *= factor
        if "bias" in dict(fused.named_parameters()):
            fused.get_parameter("bias")[outputs[role]] *= factor
    return input_of(out, hf)


def input_of(module: torch.nn.Module, hf: PreTrainedModel) -> Tensor:
    seen: list[Tensor] = []

    def look(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    module.register_forward_pre_hook(look)
    hf(input_ids=torch.from_numpy(random_rows((9,))[0].parts[0].tokens_T)[None], use_cache=False)
    return seen[0]


def test_a_target_by_role_is_the_layer_that_does_it_whatever_it_is_called() -> None:
    for name, value, down in (
        ("llama", "self_attn.v_proj", "mlp.down_proj"),
        ("gpt2", "attn.c_attn", "mlp.c_proj"),
        ("opt", "self_attn.v_proj", "fc2"),
    ):
        anatomy = tiny_model(name).anatomy
        second = anatomy.layers[1].name
        found = find_targets(anatomy, ("role:value", "role:down"), (1,))
        assert found == (f"{second}.{value}", f"{second}.{down}")


def test_a_fused_layer_is_one_target_for_all_its_roles() -> None:
    anatomy: Anatomy = tiny_model("gpt2").anatomy
    assert find_targets(anatomy, ("role:query", "role:value"), None) == anatomy.of_role("key")


@pytest.mark.parametrize("target", ["role:", "role:keys", "key"])
def test_an_unknown_role_is_refused_with_those_there_are(target: str) -> None:
    with pytest.raises(TargetNotFound) as refused:
        find_targets(tiny_model("llama").anatomy, (target,), None)
    assert repr(target) in refused.value.found
    assert "role:key" in refused.value.mend
