"""AdaLoRA: its formula and regulariser, how it shares ranks out, resuming, and peft's pruned files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from methods.adapted import dense, first_layer, output_of, some_inputs
from methods.by_peft import MEANT, read_by_peft, tuned_by_peft, written
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import tiny_model
from models.tuned import LENGTHS, logprobs, quiet, randomize
from near import assert_apart, assert_near
from peft import AdaLoraConfig
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import AdaLoRA, StepDone
from luthier.methods.adalora import AdaLoRAAttachment, AdaLoRABranch
from luthier.methods.bank import AdaptedLinear
from luthier.models.language_model import LanguageModel
from luthier.ops.dropout import Dropout

pytestmark = MEANT
SMALL = AdaLoRA(init_rank=4, target_rank=2, alpha=6, targets=("q_proj", "k_proj", "down_proj"))
Gradients = Callable[[int], dict[str, Tensor]]


def attached(method: AdaLoRA, model: LanguageModel | None = None) -> AdaLoRAAttachment:
    """The method at work on a tiny model."""
    attachment = method.attach(model or tiny_model("llama"), "default", seed=0)
    assert isinstance(attachment, AdaLoRAAttachment)
    return attachment


def step(attachment: AdaLoRAAttachment, gradients: dict[str, Tensor], number: int, num_steps: int) -> None:
    """One step of plain gradient descent, and what the method does after it."""
    for name, tensor in attachment.trainables.items():
        tensor.data.sub_(gradients[name], alpha=0.1)
    attachment.after_step(StepDone(number, num_steps, gradients))


def random_gradients(attachment: AdaLoRAAttachment, number: int) -> dict[str, Tensor]:
    """A gradient for every trained tensor, from the number of the step."""
    generator = torch.Generator().manual_seed(number)
    return {name: torch.randn(t.shape, generator=generator) for name, t in attachment.trainables.items()}


def num_kept(attachment: AdaLoRAAttachment) -> int:
    """How many ranks are at work."""
    return sum(int(branch.e_R1.ne(0).sum()) for branch in attachment.ada_branches.values())


# ── what it computes ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("keys_N", [None, torch.arange(5)])
@pytest.mark.parametrize(("name", "target"), [("llama", "k_proj"), ("gpt2", "c_attn")])
def test_the_update_is_a_product_around_a_diagonal_scaled_by_the_initial_rank(
    name: str, target: str, keys_N: Tensor | None, fast: bool
) -> None:
    method = AdaLoRA(init_rank=4, target_rank=2, alpha=6, dropout=0.4, targets=(target,))
    attachment = method.attach(tiny_model(name), "default", seed=0, fast=fast)
    randomize(attachment, 0.5)
    layer = first_layer(attachment)
    branch = layer.branch("default")
    assert isinstance(branch, AdaLoRABranch)
    update_OI = 6 / (4 + 1e-5) * branch.b_OR @ branch.e_R1[:, 0].diag() @ branch.a_RI
    x_NI = some_inputs(layer)
    branch_NI = x_NI if keys_N is None else Dropout(keys_N, layer.salt, 0.4)(x_NI)
    assert_near(output_of(layer, x_NI, keys_N), dense(layer, x_NI, layer.weight) + branch_NI @ update_OI.t())


def test_the_count_is_initial_rank_times_inputs_outputs_and_one() -> None:
    tiny = attached(AdaLoRA(init_rank=4, target_rank=2, targets=("q_proj",)))
    assert tiny.num_trainable == 520
    attachment = AdaLoRA(init_rank=3, target_rank=2).attach(tiny_model("gpt2"), "default", seed=0)
    shapes = [layer.weight.shape for layer in attachment.layers.values() if isinstance(layer, AdaptedLinear)]
    assert attachment.num_trainable == sum(3 * (i + o + 1) for o, i in shapes)


def test_the_loss_gains_the_mean_distance_of_all_factors_from_orthogonality() -> None:
    attachment = attached(SMALL.model_copy(update={"orth_weight": 0.3}))
    randomize(attachment, 0.4)
    distances = []
    for branch in attachment.ada_branches.values():
        for rows in (branch.a_RI, branch.b_OR.t()):
            distances.append((rows @ rows.t() - torch.eye(4)).square().sum().sqrt())
    extra = attachment.extra_loss()
    assert extra is not None
    assert_near(extra, 0.3 * sum(distances, torch.tensor(0.0)) / len(distances))
    assert len(distances) == 12


def test_orthonormal_factors_cost_nothing_and_have_a_finite_gradient() -> None:
    attachment = attached(SMALL)
    for branch in attachment.ada_branches.values():
        torch.nn.init.eye_(branch.a_RI)
        torch.nn.init.eye_(branch.b_OR)
    extra = attachment.extra_loss()
    assert extra is not None
    assert float(extra.detach()) == 0
    gradients = torch.autograd.grad(extra, list(attachment.trainables.values()), allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    assert attached(SMALL.model_copy(update={"orth_weight": 0.0})).extra_loss() is None


# ── how ranks are shared out ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 30, 1000])
def test_the_budget_falls_from_full_to_the_target_whatever_the_number_of_steps(num_steps: int) -> None:
    schedule = AdaLoRA().schedule(num_steps)
    budgets = [schedule.budget(step, 48, 32) for step in range(1, num_steps + 1)]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] == 32
    assert all(budget == 48 for budget in budgets[: schedule.start])
    assert sum(schedule.chooses(step) for step in range(1, num_steps + 1)) >= 1
    assert schedule.chooses(schedule.end)
    assert not any(schedule.chooses(step) for step in range(schedule.end + 1, num_steps + 1))


def test_after_the_last_choice_the_kept_ranks_are_the_target_times_the_matrices_and_stay() -> None:
    attachment, num_steps = attached(SMALL), 20
    end = SMALL.schedule(num_steps).end
    for number in range(1, num_steps + 1):
        step(attachment, random_gradients(attachment, number), number, num_steps)
        if number >= end:
            assert num_kept(attachment) == 2 * 6
    assert end < num_steps
    assert len({int(branch.kept_R.sum()) for branch in attachment.ada_branches.values()}) > 1


def test_equal_scores_do_not_cut_more_than_the_budget_says() -> None:
    attachment = attached(SMALL)
    randomize(attachment)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in attachment.trainables.items()}
    for number in range(1, 11):
        attachment.after_step(StepDone(number, 10, nothing))
    assert num_kept(attachment) == 2 * 6


def test_a_rank_that_was_cut_may_come_back_until_the_last_choice() -> None:
    method = AdaLoRA(init_rank=4, target_rank=2, targets=("q_proj",), tinit=0, tfinal=2, delta_t=4)
    attachment = attached(method)
    for number in range(1, 5):
        step(attachment, random_gradients(attachment, number), number, 12)
    cut = num_kept(attachment)
    assert cut < 8
    step(attachment, random_gradients(attachment, 5), 5, 12)
    assert num_kept(attachment) == 8


def test_choices_are_those_of_peft_over_thirty_steps_with_the_same_gradients() -> None:
    shape = {
        "target_r": 2,
        "init_r": 4,
        "tinit": 3,
        "tfinal": 6,
        "deltaT": 2,
        "beta1": 0.8,
        "beta2": 0.9,
        "total_step": 30,
    }
    config = AdaLoraConfig(lora_alpha=6, target_modules=["q_proj", "k_proj", "down_proj"], **shape)
    tuned = tuned_by_peft("llama", config)
    theirs = {
        key.removeprefix("base_model.model.").replace(".default", ""): parameter
        for key, parameter in tuned.named_parameters()
        if parameter.requires_grad
    }
    times = {"tinit": 3, "tfinal": 6, "delta_t": 2, "beta1": 0.8, "beta2": 0.9}
    attachment = attached(SMALL.model_copy(update=times))
    assert set(theirs) == set(attachment.trainables)
    for name, tensor in attachment.trainables.items():
        tensor.data.copy_(theirs[name])
    for number in range(1, 31):
        gradients = random_gradients(attachment, number)
        for name, parameter in theirs.items():
            parameter.grad = gradients[name].clone()
            parameter.data.sub_(gradients[name], alpha=0.1)
        tuned.base_model.update_and_allocate(number)
        step(attachment, gradients, number, 30)
        for name, tensor in attachment.trainables.items():
            assert torch.equal(tensor.eq(0), theirs[name].eq(0)), f"step {number}, {name}"
            assert_near(tensor, theirs[name])
    assert num_kept(attachment) == 12


@pytest.mark.parametrize("killed", [1, 7, 13])  # at full rank, while ranks are cut, and after the last choice
def test_a_run_that_was_killed_and_resumed_goes_on_with_the_same_bits(killed: int, tmp_path: Path) -> None:
    def trained(attachment: AdaLoRAAttachment, model: LanguageModel, numbers: range) -> None:
        tensors = attachment.trainables
        for number in numbers:
            extra = attachment.extra_loss()
            assert extra is not None
            loss = extra - model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.mean()
            gradients = torch.autograd.grad(loss, list(tensors.values()))
            step(attachment, dict(zip(tensors, gradients, strict=True)), number, 16)

    unbroken_model = tiny_model("llama")
    unbroken = attached(SMALL, unbroken_model)
    trained(unbroken, unbroken_model, range(1, killed + 1))
    saved = {name: tensor.detach().clone() for name, tensor in unbroken.trainables.items()}
    state = unbroken.state()
    trained(unbroken, unbroken_model, range(killed + 1, 17))

    resumed_model = tiny_model("llama")
    resumed = attached(SMALL, resumed_model)
    for name, tensor in resumed.trainables.items():
        tensor.data.copy_(saved[name])
    resumed.load_state(state)
    trained(resumed, resumed_model, range(killed + 1, 17))
    for name, tensor in unbroken.trainables.items():
        assert torch.equal(resumed.trainables[name], tensor)
    for folder, attachment in ((tmp_path / "a", unbroken), (tmp_path / "b", resumed)):
        folder.mkdir()
        attachment.write(folder, quiet)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_schedule_that_leaves_no_step_to_cut_in_is_refused_with_the_field() -> None:
    with pytest.raises(RecipeError) as refused:
        AdaLoRA(tinit=6, tfinal=4).schedule(10)
    assert refused.value.field == "method.tinit"
    assert refused.value.mend
    assert AdaLoRA(tinit=6, tfinal=4).schedule(11).end == 7


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def pruned(model: LanguageModel) -> AdaLoRAAttachment:
    """An adapter of which a layer lost all its ranks and others some."""
    attachment = attached(SMALL, model)
    randomize(attachment, 0.3)
    for index, branch in enumerate(attachment.ada_branches.values()):
        branch.kept_R.copy_(torch.arange(4) >= 4 - index)
        branch.cut()
    return attachment


def test_ranks_that_were_cut_are_left_out_of_the_file_and_the_function_stays(tmp_path: Path) -> None:
    model = tiny_model("llama")
    attachment = pruned(model)
    expected = logprobs(model)
    attachment.write(tmp_path, quiet)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    ranks = [len(tensor) for key, tensor in tensors.items() if key.endswith("lora_E")]
    assert sorted(ranks) == [0, 1, 2, 3, 4, 4]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(sum(kept) for kept in config["rank_pattern"].values()) == [0, 1, 2, 3]
    assert all(len(kept) == config["init_r"] == 4 for kept in config["rank_pattern"].values())
    assert_near(read_by_peft(tmp_path, "llama"), expected)
    fresh = tiny_model("llama")
    again = AdaLoRA(begin_from=str(tmp_path)).attach(fresh, "default", seed=9)
    assert_near(logprobs(fresh), expected)
    assert again.num_trainable == sum(tensor.numel() for tensor in tensors.values())
    (tmp_path / "again").mkdir()
    again.write(tmp_path / "again", quiet)
    weights, settings = "adapter_model.safetensors", "adapter_config.json"
    assert (tmp_path / weights).read_bytes() == (tmp_path / "again" / weights).read_bytes()
    assert config == json.loads((tmp_path / "again" / settings).read_text())


def test_a_rank_that_came_back_after_the_last_choice_is_written() -> None:
    attachment = attached(SMALL)
    branch = next(iter(attachment.ada_branches.values()))
    branch.kept_R.copy_(torch.tensor([True, False, False, True]))
    branch.e_R1.data.copy_(torch.tensor([[0.0], [0.5], [0.0], [1.0]]))
    assert branch.file_tensors()["lora_E"][:, 0].tolist() == [0.0, 0.5, 1.0]


def test_a_pruned_adapter_goes_on_with_what_it_has_and_is_not_cut_below_the_target(tmp_path: Path) -> None:
    pruned(tiny_model("llama")).write(tmp_path, quiet)
    again = attached(AdaLoRA(begin_from=str(tmp_path)))
    for number in range(1, 11):
        step(again, random_gradients(again, number), number, 10)
    assert num_kept(again) == 2 * 6
    assert again.extra_loss() is not None


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("llama", AdaLoRA(init_rank=4, target_rank=3, alpha=5, dropout=0.2)),
        ("gpt2", AdaLoRA(init_rank=4, target_rank=4)),
        ("falcon-new", AdaLoRA(init_rank=4, target_rank=2, tinit=5, tfinal=2, delta_t=3)),
    ],
)
def test_peft_computes_the_same_from_a_written_adapter(name: str, method: AdaLoRA, tmp_path: Path) -> None:
    expected = written(tmp_path / "a", name, method)
    assert_near(read_by_peft(tmp_path / "a", name), expected)


@pytest.mark.parametrize(
    ("name", "targets"), [("llama", ["q_proj", "k_proj", "up_proj"]), ("gpt2", ["c_attn", "c_fc"])]
)
def test_an_adapter_that_peft_pruned_and_saved_computes_the_same_here(
    name: str, targets: list[str], tmp_path: Path
) -> None:
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, lora_alpha=6, total_step=4, tfinal=1,
        target_modules=targets, fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    tuned = tuned_by_peft(name, config)
    for number in range(1, 5):
        for index, parameter in enumerate(p for p in tuned.parameters() if p.requires_grad):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index * 9 + number))
        tuned.base_model.update_and_allocate(number)
    expected = plain_logprobs(tuned, random_rows(LENGTHS)).detach()
    tuned.save_pretrained(tmp_path)
    model = tiny_model(name)
    attachment = attached(AdaLoRA(begin_from=str(tmp_path)), model)
    assert_near(logprobs(model), expected)
    assert_apart(logprobs(model), logprobs(model, None))
    assert num_kept(attachment) == 2 * len(attachment.layers)


def test_the_embedding_is_refused_with_the_mend() -> None:
    with pytest.raises(RecipeError) as refused:
        AdaLoRA(targets=("embed_tokens",)).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.targets"
    assert refused.value.mend


def test_a_rank_for_a_layer_that_is_not_adapted_is_refused_by_name() -> None:
    with pytest.raises(RecipeError) as refused:
        AdaLoRA(ranks={"q_proj": 3}).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.ranks"
    assert "'q_proj'" in refused.value.found
    name = "model.layers.1.self_attn.q_proj"
    attachment = attached(AdaLoRA(ranks={name: 3}))
    assert [target for target, branch in attachment.ada_branches.items() if len(branch.kept_R) == 3] == [name]


@pytest.mark.parametrize(
    "settings",
    [
        {"init_rank": 0},
        {"target_rank": 0},
        {"init_rank": 4, "target_rank": 5},
        {"ranks": {"x": 13}},
        {"ranks": {"x": -1}},
        {"beta1": 1.0},
        {"orth_weight": -0.1},
        {"delta_t": 0},
    ],
)
def test_values_that_make_no_adalora_are_refused_by_the_settings(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AdaLoRA.model_validate(settings)
