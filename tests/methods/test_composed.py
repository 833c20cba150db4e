"""Several methods as one adapter: what they compute together, whose names and rates, files part by part, and conflicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.by_peft import MEANT, read_by_peft
from models.tiny import tiny_model
from models.tuned import logprobs, quiet, randomize, usual_batch
from near import assert_near
from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.methods import (
    IA3,
    MAM,
    AdaLoRA,
    AttentionFusion,
    Houlsby,
    Ladder,
    LNTuning,
    LoRA,
    LoReFT,
    Method,
    Parallel,
    PiSSA,
    PrefixTuning,
    PromptTuning,
    Stack,
    StepDone,
    UniPELT,
)
from luthier.recipe import dump_recipe, make_recipe
from luthier.training.flat import FlatTrainables

pytestmark = MEANT
ATTENTION = ("role:query", "role:value")


def recipe_of(method: dict[str, Any]) -> Method:
    """A method as a recipe's text makes it, written out and read again."""
    recipe = make_recipe({"model": "smollm2-135m", "data": {"train": "tatsu-lab/alpaca"}, "method": method})
    again = make_recipe({**json.loads(recipe.model_dump_json(by_alias=True)), "method": method})
    assert again.method == recipe.method
    return recipe.method


def test_a_stack_of_one_computes_what_the_method_alone_does() -> None:
    found = []
    for method in (LoRA(rank=3), Stack(parts=(LoRA(rank=3),))):
        model = tiny_model("llama")
        randomize(method.attach(model, "default", seed=0))
        found.append(logprobs(model))
    assert torch.equal(*found)


def test_parts_at_different_weights_add_up_to_one_adapter_at_both() -> None:
    together, apart = tiny_model("llama"), tiny_model("llama")
    parts = (LoRA(rank=2, targets=("q_proj",)), LoRA(rank=2, targets=("down_proj",)))
    stack = Stack(parts=parts).attach(together, "default", seed=0)
    one = LoRA(rank=2, targets=("q_proj", "down_proj")).attach(apart, "default", seed=0)
    for name, tensor in one.trainables.items():
        key = "parts.0" if "q_proj" in name else "parts.1"
        tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))) * 0.2)
        stack.trainables[f"{key}.{name}"].data.copy_(tensor)
    assert torch.equal(logprobs(together), logprobs(apart))


def test_each_part_learns_at_its_own_default_rate() -> None:
    method = Stack(parts=(LoRA(rank=2, targets=ATTENTION, lr_ratio=4), LNTuning(), PromptTuning(num_virtual_tokens=2)))
    rates: dict[str, set[float]] = {}
    for group in method.attach(tiny_model("llama"), "default", seed=0).groups:
        for name in group.tensors:
            rates.setdefault(name[: len("parts.0")], set()).add(round(group.lr_factor * Stack.default_lr, 9))
    lora, prompt = LoRA.default_lr, PromptTuning.default_lr
    assert rates == {"parts.0": {lora, 4 * lora}, "parts.1": {LNTuning.default_lr}, "parts.2": {prompt}}


def test_what_parts_do_after_a_step_and_remember_is_theirs_under_their_names() -> None:
    parts = (AdaLoRA(init_rank=3, target_rank=1, tinit=0, tfinal=0, delta_t=1, targets=ATTENTION), Houlsby(width=4))
    stacked = Stack(parts=(parts[0], parts[1].model_copy(update={"sublayers": ("feedforward",)})))
    states, extras = [], []
    for method in (parts[0], stacked):
        model = tiny_model("llama")
        attachment = method.attach(model, "default", seed=0)
        randomize(attachment)
        key = "parts.0." if method is stacked else ""
        for name, tensor in attachment.trainables.items():
            if name.startswith(key) and "lora" in name:
                own = name.removeprefix(key)
                tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(own))))
        extra = attachment.extra_loss()
        assert extra is not None
        extras.append(float(extra.detach()))
        for number in (1, 2):
            gradients = {name: torch.ones_like(tensor) for name, tensor in attachment.trainables.items()}
            attachment.after_step(StepDone(number, 4, gradients))
        state = attachment.state()
        assert all(name.startswith(key) for name in state)
        attachment.load_state(state)
        states.append({name.removeprefix(key): tensor for name, tensor in state.items()})
    assert extras[0] == extras[1]
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_each_part_is_written_in_its_own_form_and_peft_reads_what_it_knows(tmp_path: Path) -> None:
    model = tiny_model("llama")
    lora = LoRA(rank=3, targets=ATTENTION)
    attachment = Stack(parts=(lora, Parallel(width=5))).attach(model, "default", seed=0)
    randomize(attachment)
    FlatTrainables(attachment.groups, workers=1)  # as the loop leaves them: views of one vector
    attachment.write(tmp_path, quiet)
    alone = tiny_model("llama")
    LoRA(begin_from=str(tmp_path / "parts.0")).attach(alone, "default", seed=0)
    assert_near(read_by_peft(tmp_path / "parts.0", "llama"), logprobs(alone), 1e-5)
    again = tiny_model("llama")
    Stack(parts=(LoRA(begin_from=str(tmp_path / "parts.0")), Parallel(begin_from=str(tmp_path / "parts.1")))).attach(
        again, "default", seed=9
    )
    assert torch.equal(logprobs(again), logprobs(model))


def test_one_that_goes_on_has_its_adapters_shapes_whatever_its_defaults_are(tmp_path: Path) -> None:
    model = tiny_model("llama")
    method = MAM(prefix=PrefixTuning(num_virtual_tokens=4, projection=6), adapter=Parallel(width=5, scale=2.5))
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    attachment.write(tmp_path, quiet)
    again = tiny_model("llama")
    going_on = MAM(begin_from=str(tmp_path)).attach(again, "default", seed=3)
    assert_near(logprobs(again), logprobs(model), 1e-6)
    assert set(going_on.trainables) == set(attachment.trainables)
    (tmp_path / "more").mkdir()
    going_on.write(tmp_path / "more", quiet)
    files = [json.loads((folder / "luthier_adapter.json").read_text()) for folder in (tmp_path, tmp_path / "more")]
    for kept in (file["settings"] for file in files):
        assert (kept["prefix"]["num_virtual_tokens"], kept["prefix"]["projection"]) == (4, 6)
        assert (kept["adapter"]["width"], kept["adapter"]["scale"]) == (5, 2.5)


def test_pissa_in_a_stack_goes_on_as_the_lora_that_it_left(tmp_path: Path) -> None:
    model = tiny_model("llama")
    attachment = Stack(parts=(PiSSA(rank=2, targets=ATTENTION), Parallel(width=4))).attach(model, "default", seed=0)
    randomize(attachment)
    (tmp_path / "adapter").mkdir()
    attachment.write(tmp_path / "adapter", quiet)
    again = tiny_model("llama")
    assert attachment.method.continued(tmp_path).attach(again, "default", seed=1).num_trainable > 0
    assert_near(logprobs(again), logprobs(model), 2e-5)


@pytest.mark.parametrize(
    ("stated", "field"),
    [
        ({"prefix": {"num_virtual_tokens": 9}}, "method.prefix.num_virtual_tokens"),
        ({"adapter": {"width": 6}}, "method.adapter.width"),
    ],
)
def test_a_recipe_that_states_another_shape_than_its_adapter_has_is_refused_by_the_parts_field(
    stated: dict[str, Any], field: str, tmp_path: Path
) -> None:
    method = MAM(prefix=PrefixTuning(num_virtual_tokens=4), adapter=Parallel(width=5))
    method.attach(tiny_model("llama"), "default", seed=0).write(tmp_path, quiet)
    same = {"prefix": {"num_virtual_tokens": 4}, "adapter": {"width": 5}}
    MAM.model_validate({"from": str(tmp_path), **same}).attach(tiny_model("llama"), "default", seed=0)
    with pytest.raises(RecipeError) as caught:
        MAM.model_validate({"from": str(tmp_path), **stated}).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == field
    assert field in caught.value.mend


def test_other_parts_than_the_adapters_are_refused(tmp_path: Path) -> None:
    Stack(parts=(Parallel(width=5),)).attach(tiny_model("llama"), "default", seed=0).write(tmp_path, quiet)
    other = Stack(begin_from=str(tmp_path), parts=(Houlsby(width=5),))
    with pytest.raises(RecipeError, match="parallel, not houlsby"):
        other.attach(tiny_model("llama"), "default", seed=0)


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ((LoRA(rank=2), Parallel(width=4)), "down_proj"),
        ((PromptTuning(), PrefixTuning()), "beginning of every document"),
        ((LoReFT(layers=(0,)), LoReFT(layers=(1,))), "residual stream"),
        ((LoRA(rank=2, targets=("q_proj",)), IA3(targets=("q_proj",), feedforward=())), "q_proj"),
    ],
)
def test_two_parts_that_want_one_place_are_refused_by_their_names(parts: tuple[Any, ...], place: str) -> None:
    with pytest.raises(RecipeError, match=place) as caught:
        Stack(parts=parts).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == "method.parts[1]"
    assert "parts[0] and parts[1]" in caught.value.found
    assert caught.value.mend


@pytest.mark.parametrize("side", [Ladder(reduction=2), AttentionFusion()])
def test_a_network_beside_the_base_is_refused_company(side: Any) -> None:
    with pytest.raises(RecipeError, match="beside the base"):
        Stack(parts=(LoRA(rank=2), side)).attach(tiny_model("llama"), "default", seed=0)


def test_an_error_of_a_part_names_the_field_as_the_recipe_has_it() -> None:
    with pytest.raises(RecipeError) as caught:
        Stack(parts=(Parallel(width=4), LoRA(targets=("nowhere",)))).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == "method.parts[1].targets"
    assert "method.parts[1].targets" in caught.value.mend
    with pytest.raises(RecipeError) as caught:
        UniPELT(lora=LoRA(targets=("embed_tokens",))).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == "method.lora.targets"


def test_a_stack_whose_parts_merge_merges_and_one_where_not_all_do_stays_whole() -> None:
    model = tiny_model("llama")
    parts = (LoRA(rank=2, targets=("q_proj",)), IA3(targets=("role:down",)), LNTuning())
    attachment = Stack(parts=parts).attach(model, "default", seed=0)
    randomize(attachment)
    unmerged = logprobs(model)
    attachment.merge()
    assert_near(logprobs(model, None), unmerged, 2e-4)
    model = tiny_model("llama")
    attachment = Stack(parts=(parts[0], Parallel(width=4))).attach(model, "default", seed=0)
    randomize(attachment)
    before = logprobs(model), logprobs(model, None)
    with pytest.raises(RecipeError, match="parallel"):
        attachment.merge()
    assert torch.equal(logprobs(model), before[0])
    assert torch.equal(logprobs(model, None), before[1])


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_merged_stack_has_the_head_and_the_rows_that_trained_beside_its_parts(family: str) -> None:
    model = tiny_model(family)
    model.new_tokens = (7, 9)
    attachment = Stack(parts=(LoRA(rank=2, targets=("role:query",)), IA3(targets=("role:value",)))).attach(
        model, "default", seed=0
    )
    assert attachment.num_in_head > 0 or family == "llama"
    randomize(attachment)
    unmerged = logprobs(model)
    attachment.merge()
    assert_near(logprobs(model, None), unmerged, 2e-4)
    assert not any("branches" in name for name in model.hf.state_dict())


def test_parts_in_a_recipe_have_the_mixtures_own_defaults_and_otherwise_what_it_says() -> None:
    mam = recipe_of({"kind": "mam", "prefix": {"projection": 8}})
    assert isinstance(mam, MAM)
    assert (mam.prefix.num_virtual_tokens, mam.prefix.projection, mam.adapter.scale) == (30, 8, 4.0)
    unipelt = recipe_of({"kind": "unipelt", "lora": {"rank": 2}, "adapter": {"activation": "gelu"}})
    assert isinstance(unipelt, UniPELT)
    assert (unipelt.lora.rank, unipelt.lora.targets, unipelt.adapter.width) == (2, ATTENTION, 48)
    stack = recipe_of({"kind": "stack", "parts": [{"rank": 3}, {"kind": "mam"}]})
    assert isinstance(stack, Stack)
    assert [part.kind for part in stack.parts] == ["lora", "mam"]


def test_a_recipe_that_goes_on_is_written_without_defaults_that_would_contradict_its_adapter() -> None:
    from_part = {"kind": "stack", "parts": [{"kind": "lora", "from": "runs/a"}, {"kind": "parallel", "width": 5}]}
    from_whole = {"kind": "mam", "from": "runs/a", "adapter": {"width": 5}}
    for method in (from_part, from_whole):
        values = {"model": "smollm2-135m", "data": {"train": "tatsu-lab/alpaca"}, "method": method}
        text = dump_recipe(make_recipe(values))
        assert "rank" not in text
        assert "scale" not in text or method is from_part
        assert "num_virtual_tokens" not in text
        assert "width: 5" in text


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"kind": "stack", "parts": [{"kind": "full"}]}, "method.parts[0].kind is 'full'"),
        ({"kind": "stack", "parts": [{"kind": "lora", "rnk": 3}]}, "Did you mean rank"),
        ({"kind": "stack", "parts": []}, "method.parts"),
        ({"kind": "stack"}, "method.parts is missing"),
        ({"kind": "mam", "prefix": {"virtual": 3}}, "method.prefix.virtual"),
        ({"kind": "mam", "adapter": {"width": 0}}, "method.adapter.width"),
    ],
)
def test_a_recipe_with_a_faulty_part_is_refused_by_the_parts_field(method: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe({"model": "smollm2-135m", "data": {"train": "tatsu-lab/alpaca"}, "method": method})
    assert words in str(caught.value)


def test_a_mixture_in_a_stack_works_and_is_read_back(tmp_path: Path) -> None:
    model = tiny_model("llama")
    mam = MAM(prefix=PrefixTuning(num_virtual_tokens=2), adapter=Parallel(width=4))
    method = Stack(parts=(mam, LoRA(rank=2, targets=ATTENTION)))
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    assert attachment.num_virtual == 2
    assert attachment.lowest_layer == 0
    assert any(name.startswith("parts.0.prefix.") for name in attachment.trainables)
    (tmp_path / "adapter").mkdir()
    attachment.write(tmp_path / "adapter", quiet)
    again = tiny_model("llama")
    method.continued(tmp_path).attach(again, "default", seed=5)
    assert_near(logprobs(again), logprobs(model), 1e-6)
    assert usual_batch(again, "default").tokens_BT.numel() == usual_batch(model, "default").tokens_BT.numel()


def test_settings_without_parts_are_refused() -> None:
    with pytest.raises(ValidationError):
        Stack.model_validate({})
