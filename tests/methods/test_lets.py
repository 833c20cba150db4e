"""LeTS-style: its attentions and its LSTM against plain ones, the search, the pruning, what they cost, and its files."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from methods.answers import answers
from methods.examples import FAMILIES, fitting
from models.rows import batch_of, class_rows, random_row, random_rows, with_sources
from models.tiny import ENCODER_DECODERS, NAMES, PLAIN, tiny_model
from models.tuned import LENGTHS, logprobs, quiet, randomize, usual_batch, usual_rows
from near import assert_apart, assert_near
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training.runs import LENGTHS as LENGTHS_OF_A_RUN
from training.runs import Run, same_bits

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.methods import LeTS, LoRA
from luthier.methods.contract import StepDone
from luthier.methods.lets import LeTSAttachment
from luthier.methods.lets_side import LeTSSide, projections, unit
from luthier.methods.sparse_deltas import Delta, strongest_places
from luthier.models.call import Draws
from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.trunk import TrunkCache
from luthier.types import Batch, Part

WHOLE = tuple(name for name in NAMES if name != "opt-norm-after")  # that one projects at its ends
ENCODERS = ("bert", "roberta", "distilbert")
"""Those whose attention can be run for one token alone."""
ALL_KINDS = (*FAMILIES, *ENCODERS, *ENCODER_DECODERS)
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")


def beside(name: str = "llama", fast: FastModel | None = None, **settings: Any) -> tuple[LanguageModel, LeTSAttachment]:
    """A tiny model with the method at work; its choices are repeated where there are more layers."""
    model = tiny_model(name, fast)
    attachment = fitting(LeTS(**{"width": 6, **settings}), name).attach(model, "default", seed=0)
    assert isinstance(attachment, LeTSAttachment)
    return model, attachment


def run_of(name: str, **settings: Any) -> Run:
    """A run over rows that the tiny model's head is for."""
    if name in ENCODERS:
        settings["rows"] = class_rows(LENGTHS_OF_A_RUN, "first")
    if name in ENCODER_DECODERS:
        settings |= {"rows": with_sources(random_rows(LENGTHS_OF_A_RUN)), "budget": 24}
    return Run(name, **settings)


def states_of(model: LanguageModel, batch: Batch) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """What enters and leaves the base's layers by number, and what its self-attentions give by index; a decoder's, if there is one."""
    tapped: dict[int, Tensor] = {}
    attended: dict[int, Tensor] = {}
    handles = []
    for number, layer in enumerate(model.anatomy.answering):
        module, last = model.hf.get_submodule(layer.name), model.hf.get_submodule(layer.attention_out)

        def before(m: nn.Module, args: Any, kwargs: Any, index: int = number) -> None:
            tapped[index] = args[0] if args else kwargs["hidden_states"]

        def after(m: nn.Module, args: Any, output: Any, index: int = number) -> None:
            tapped[index + 1] = output if isinstance(output, Tensor) else output[0]

        def attend(m: nn.Module, args: Any, output: Tensor, index: int = number) -> None:
            attended[index] = output

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after))
        handles.append(last.register_forward_hook(attend))
    model.hidden(batch)
    for handle in handles:
        handle.remove()
    return tapped, attended


def read_of(model: LanguageModel, states_BTD: Tensor) -> Tensor:
    """Of the tokens that the side network reads: of all, or beside an encoder of the first of every row."""
    return states_BTD[:, :1] if model.classes else states_BTD


def by_hand(side: LeTSSide, read: list[Tensor], last_BTD: Tensor) -> Tensor:
    """h_L + γ (z − h_L) from the states that are read of the layers, with a plain LSTM over one token at a time."""
    rows = []
    for token in range(last_BTD.shape[0] * last_BTD.shape[1]):
        g_LD = torch.stack([state.flatten(0, 1)[token] for state in read])
        g_LD = g_LD / g_LD.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        output_L2H, _ = side.lstm(g_LD)
        hidden = side.lstm.hidden_size
        y = torch.cat([output_L2H[-1, :hidden], output_L2H[0, hidden:]])
        h = last_BTD.flatten(0, 1)[token]
        z = h.square().mean().add(1e-6).sqrt() * (side.project.weight @ y + side.project.bias)
        rows.append(h + side.gate * (z - h))
    return torch.stack(rows).view(last_BTD.shape)


# ── the formula ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [*WHOLE, *ENCODERS, *ENCODER_DECODERS])
def test_with_zero_deltas_a_computed_attention_is_the_base_s_own(name: str) -> None:
    model, attachment = beside(name, choices=("compute", "compute"))
    batch = usual_batch(model, None)
    _, attended = states_of(model, batch)
    read: list[Tensor] = []
    attachment.side.lstm.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    model.hidden(batch, "default")
    assert_near(read[0], torch.stack([unit(read_of(model, attended[index])) for index in range(len(attended))]), 1e-5)


@pytest.mark.parametrize("name", ALL_KINDS)
def test_deltas_compute_what_the_base_would_with_changed_weights(name: str) -> None:
    model, attachment = beside(name, choices=("compute", "compute"))
    randomize(attachment)
    attachment.side.gate.data.fill_(1.0)
    batch = usual_batch(model, None)
    tapped, _ = states_of(model, batch)
    read = []
    for index, layer in enumerate(
        model.anatomy.answering
    ):  # each changed alone: what enters it is the unchanged base's
        changed = tiny_model(name)
        for place in projections(layer):
            delta_OI = attachment.side.deltas[place].numbers.data
            weight = changed.hf.get_submodule(place).get_parameter("weight")
            weight.data += delta_OI.t() if name == "gpt2" else delta_OI
        read.append(read_of(model, states_of(changed, batch)[1][index]))
    expected = model.final_norm(by_hand(attachment.side, read, read_of(model, tapped[len(read)])))
    assert_near(read_of(model, model.hidden(batch, "default")), expected, 1e-5)


@pytest.mark.parametrize("name", ["llama", *ENCODERS, "t5"])
def test_reusing_every_layer_is_an_lstm_over_them_and_attends_nowhere(name: str) -> None:
    model, attachment = beside(name, choices=("reuse", "reuse"))
    randomize(attachment)
    attachment.side.gate.data.fill_(0.7)
    assert attachment.side.deltas == {}
    batch = usual_batch(model, None)
    tapped, _ = states_of(model, batch)
    read = [read_of(model, tapped[number]) for number in range(1, len(tapped))]
    expected = model.final_norm(by_hand(attachment.side, read, read[-1]))
    assert_near(read_of(model, model.hidden(batch, "default")), expected, 1e-5)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_half_precision_keeps_the_deltas_apart_from_the_weights(name: str) -> None:
    model = tiny_model(name, dtype=torch.bfloat16)
    attachment = LeTS(width=6, choices=("compute", "compute")).attach(model, "default", seed=0)
    assert isinstance(attachment, LeTSAttachment)
    randomize(attachment, 1e-3)
    attachment.side.gate.data.fill_(1.0)
    small = model.forward(usual_batch(model, "default"), "default").logprob_N
    first = next(iter(attachment.side.deltas.values()))
    (gradient,) = torch.autograd.grad(small.sum(), [first.numbers])
    assert gradient.dtype == torch.float32
    assert float(gradient.abs().max()) > 0


def test_the_count_is_that_of_the_formula() -> None:
    _, attachment = beside()
    d, h, layers, kv = 32, 6, 2, 16
    matrices = layers * (2 * d * d + 2 * d * kv)
    assert attachment.num_trainable == matrices + 8 * h * (d + h + 2) + 2 * h * d + d + layers + 1


def test_its_own_start_leaves_the_process_s_random_numbers_alone() -> None:
    model = tiny_model("llama")
    before = torch.get_rng_state()
    LeTS().attach(model, "default", seed=0)
    model.forward(batch_of(LENGTHS, model.layout), "default", Draws(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_of_the_base_has_a_graph_and_nothing_of_it_is_called_twice() -> None:
    model, attachment = beside(choices=("compute", "compute"))
    attachment.side.gate.data.fill_(0.5)
    graphs: list[bool] = []
    for layer in model.anatomy.layers:
        module = model.hf.get_submodule(layer.name)
        module.register_forward_hook(lambda m, a, out: graphs.append(out.requires_grad or torch.is_grad_enabled()))
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    assert loss.requires_grad
    assert graphs == [False, False]


def test_another_adapter_at_the_same_layers_changes_nothing_here() -> None:
    """Whichever of the two came first."""
    for lora_first in (True, False):
        model = tiny_model("llama")
        methods = [(LoRA(rank=2), "other"), (LeTS(width=6, choices=("reuse", "compute")), "default")]
        for method, name in methods if lora_first else methods[::-1]:
            randomize(method.attach(model, name, seed=0))
        _, alone = beside(choices=("reuse", "compute"))
        randomize(alone)
        assert_near(logprobs(model), logprobs(alone.model), 1e-6)


# ── the search ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ALL_KINDS)
def test_a_pass_of_the_search_mixes_both_branches_by_draws_of_its_step(name: str) -> None:
    model, attachment = beside(name)
    side = attachment.side
    randomize(attachment)
    side.gate.data.fill_(1.0)
    batch = usual_batch(model, None)
    read: list[Tensor] = []
    side.lstm.register_forward_pre_hook(lambda m, args: read.append(args[0].detach()))
    for draws in (Draws(3, 1), Draws(3, 1), Draws(3, 2), Draws(4, 1)):
        model.forward(batch, "default", draws)
    assert torch.equal(read[0], read[1])
    assert_apart(read[2], read[0])
    assert_apart(read[3], read[0])
    tapped, _ = states_of(model, batch)
    side.settled = (True,) * len(side.macs)
    model.forward(batch, "default")
    reused = torch.stack([unit(read_of(model, tapped[number])) for number in range(1, len(tapped))])
    computed, mixed = read[4], read[0]
    share_L = ((mixed - reused) * (computed - reused)).sum((1, 2)) / (computed - reused).square().sum((1, 2))
    assert_near(mixed, torch.lerp(reused, computed, share_L.view(-1, 1, 1)), 1e-4)
    assert bool(((share_L > 0) & (share_L < 1)).all())


def test_the_draws_of_many_steps_are_those_of_two_gumbels() -> None:
    """σ((α + noise) / τ) is above ½ as often as σ(α), whatever τ."""
    model, attachment = beside()
    side = attachment.side
    side.choice_L.data.copy_(torch.tensor([1.0, -0.5]))  # type: ignore[union-attr]
    shares: list[Tensor] = []
    lerp = torch.lerp

    def noting(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
        shares.append(weight.detach())
        return lerp(start, end, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "lerp", noting)
        for step in range(600):
            model.hidden(batch_of((2,), model.layout), "default", Draws(0, step))
    above_L = (torch.stack(shares).view(600, 2) > 0.5).double().mean(0)
    assert_near(above_L, torch.sigmoid(torch.tensor([1.0, -0.5])).double(), 0.12)


def test_without_draws_a_layer_computes_where_alpha_is_not_below_zero() -> None:
    model, attachment = beside()
    randomize(attachment)
    attachment.side.choice_L.data.copy_(torch.tensor([0.0, -0.3]))  # type: ignore[union-attr]
    assert attachment.choices == ("compute", "reuse")
    open_search = logprobs(model)
    attachment.side.settled = (True, False)
    assert_near(logprobs(model), open_search, 1e-6)
    attachment.side.settled = (False, True)
    assert_apart(logprobs(model), open_search)


def test_the_temperature_falls_from_5_to_a_half_by_equal_factors() -> None:
    schedule = LeTS(search_share=0.5, prune_steps=2).schedule(10)
    assert (schedule.search, schedule.prune) == (5, 7)
    falling = [schedule.temperature(step) for step in range(1, 6)]
    assert falling[0] == 5.0
    assert falling[-1] == pytest.approx(0.5)
    assert [b / a for a, b in pairwise(falling)] == pytest.approx([0.1**0.25] * 4)


def test_the_search_pays_for_the_expected_share_of_multiply_adds() -> None:
    _, attachment = beside(macs_weight=3.0)
    choice_L = attachment.side.choice_L
    assert choice_L is not None
    choice_L.data.copy_(torch.tensor([2.0, -1.0]))
    assert attachment.extra_loss() is None
    attachment.side.temperature = 5 * 0.1**0.49
    assert attachment.extra_loss() is None  # not in the first half, while the gate opens
    attachment.side.temperature = 5 * 0.1**0.75
    halfway = attachment.extra_loss()
    attachment.side.temperature = 0.5
    extra = attachment.extra_loss()
    assert halfway is not None
    assert extra is not None
    assert float(extra.detach()) == pytest.approx(3 * float(torch.sigmoid(choice_L.detach()).mean()))
    assert float(halfway.detach()) == pytest.approx(float(extra.detach()) / 2)
    (gradient_L,) = torch.autograd.grad(extra, [choice_L])
    assert bool((gradient_L > 0).all())
    attachment.side.settled = (True, False)
    assert attachment.extra_loss() is None
    assert attachment.side.macs_share == 0.5


def test_what_the_search_found_holds_whatever_alpha_does_later() -> None:
    run = Run(method=LeTS(width=6, search_share=0.3, prune_steps=2), steps=10)
    found: list[Any] = []

    def note(run: Run, metrics: dict[str, Any]) -> None:
        assert isinstance(run.attachment, LeTSAttachment)
        found.append(run.attachment.side.settled)
        if metrics["step"] == 4:
            run.attachment.side.choice_L.data.neg_()  # type: ignore[union-attr]

    run.on_step = note
    run.go()
    assert found[:2] == [None, None]
    assert found[2] is not None
    assert found[2:] == [found[2]] * 8


@pytest.mark.parametrize(("steps", "settings"), [(4, {"prune_steps": 3}), (10, {"search_share": 0.9})])
def test_a_run_that_leaves_no_step_after_the_pruning_is_refused(steps: int, settings: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"only {steps} steps") as caught:
        LeTS(**settings).schedule(steps)
    assert caught.value.field == "method.prune_steps"
    assert caught.value.mend


# ── the pruning ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_places_with_the_highest_sums_of_gradients_are_kept_in_every_matrix() -> None:
    _, attachment = beside(choices=("compute", "compute"), density=0.05, prune_steps=2)
    draw = torch.Generator().manual_seed(0)
    sums: dict[str, Tensor] = {}
    for step in (1, 2):
        gradients = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in attachment.trainables.items()}
        for place in attachment.side.deltas:
            gradient = gradients[f"{place}.delta"].abs()
            sums[place] = sums[place] + gradient if place in sums else gradient
        assert attachment.after_step(StepDone(step, 8, gradients)) == (step == 2)
    for place, delta in attachment.side.deltas.items():
        assert delta.kept_K is not None
        count = round(0.05 * math.prod(delta.shape))
        assert len(delta.kept_K) == count
        threshold = sums[place].flatten().sort(descending=True).values[count - 1]
        assert torch.equal(torch.nonzero(sums[place].flatten() >= threshold)[:, 0], delta.kept_K)
        assert torch.equal(delta.numbers, torch.zeros(count))
        assert attachment.trainables[f"{place}.delta"] is delta.numbers
    assert attachment.scores == {}


def test_a_density_below_one_number_keeps_one() -> None:
    assert strongest_places(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), 0.01).tolist() == [1]


def test_a_chosen_mask_leaves_numbers_at_its_places_alone_and_the_gradient_is_that_of_the_whole_there() -> None:
    delta, whole = Delta(4, 5), Delta(4, 5)
    kept_K = torch.tensor([1, 7, 19])
    delta.begin_anew(kept_K)
    assert delta.numbers.shape == (3,)
    delta.numbers.data.normal_(generator=torch.Generator().manual_seed(0))
    weight_OI = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    changed_OI = delta.added_to(weight_OI)
    outside = torch.ones(20, dtype=torch.bool)
    outside[kept_K] = False
    assert torch.equal(changed_OI.flatten()[outside], weight_OI.flatten()[outside])
    assert_near(changed_OI.flatten()[kept_K], weight_OI.flatten()[kept_K] + delta.numbers)
    whole.numbers.data.copy_(delta.alone())
    (gradient_K,) = torch.autograd.grad((changed_OI**2).sum(), [delta.numbers])
    (gradient_OI,) = torch.autograd.grad((whole.added_to(weight_OI) ** 2).sum(), [whole.numbers])
    assert_near(gradient_K, gradient_OI.flatten()[kept_K])
    places_K, values_K = delta.packed()
    whole.unpack(places_K, values_K)
    assert torch.equal(whole.alone(), delta.alone())


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("choices", [None, ("compute", "compute")], ids=["searched", "given"])
def test_after_the_pruning_what_trains_and_the_optimizer_s_state_are_of_the_kept_numbers_alone(
    choices: Any, name: str
) -> None:
    method = LeTS(width=6, search_share=0.25, density=0.1, prune_steps=3, choices=choices)
    run = run_of(name, method=method, steps=12, checkpoint_every=1)
    assert isinstance(run.attachment, LeTSAttachment)
    whole = {f"{place}.delta": delta.shape for place, delta in run.attachment.side.deltas.items()}
    watched = [weakref.ref(delta.numbers) for delta in run.attachment.side.deltas.values()]
    run.go()
    assert all(each() is None for each in watched)
    pruned_at = method.schedule(12).prune
    for checkpoint in run.saved:
        moments = {key: moment for key, moment in checkpoint.optimizer.items() if key.endswith(".delta")}
        numbers = {key: tensor for key, tensor in checkpoint.trainables.items() if key.endswith(".delta")}
        if checkpoint.step < pruned_at:
            assert {key: tuple(tensor.shape) for key, tensor in numbers.items()} == whole
            assert len(moments) == 2 * len(whole)
            continue
        kept = {key: round(0.1 * math.prod(whole[key])) for key in numbers}
        assert {key: tuple(tensor.shape) for key, tensor in numbers.items()} == {key: (kept[key],) for key in kept}
        assert len(moments) == (0 if checkpoint.step == pruned_at else 2 * len(numbers))
        assert all(moment.numel() == kept[key.partition(".")[2]] for key, moment in moments.items())
    assert choices is None or set(numbers) == set(whole)
    assert all(bool(tensor.any()) for tensor in numbers.values())


def test_what_is_not_pruned_keeps_its_optimizer_s_state_and_the_kept_numbers_begin_without() -> None:
    method = LeTS(width=6, choices=("compute", "compute"), prune_steps=3)
    run = run_of("llama", method=method, steps=5, checkpoint_every=1)
    run.go()
    counts = [[int(state) for key, state in saved.optimizer.items() if key.startswith("step.")] for saved in run.saved]
    assert counts == [[1, 1, 1], [2, 2, 2], [3, 3], [4, 4, 1], [5, 5, 2]]


@pytest.mark.parametrize("name", ["llama", "bert", "roberta", "t5"])
def test_a_run_broken_off_in_any_of_its_stages_ends_in_the_same_bits(name: str) -> None:
    def fresh() -> Run:
        return run_of(
            name,
            method=LeTS(width=6, search_share=0.3, density=0.1, prune_steps=3),
            steps=10, checkpoint_every=1, workers=2,
        )  # fmt: skip

    whole = fresh()
    whole.go()
    for step in range(1, 10):
        again = fresh()
        again.go(whole.saved[step - 1])
        assert same_bits(again.weights(), whole.weights())
        assert same_bits(again.attachment.state(), whole.attachment.state())


def test_the_state_of_an_earlier_step_takes_a_pruned_adapter_back() -> None:
    run = Run(method=LeTS(width=6, search_share=0.3, density=0.1, prune_steps=3), steps=10, checkpoint_every=1)
    run.go()
    assert isinstance(run.attachment, LeTSAttachment)
    for step in (1, 4, 10):
        state = run.saved[step - 1].method
        run.attachment.load_state(state)
        assert same_bits(run.attachment.state(), state)
        held = {key: tuple(tensor.shape) for key, tensor in run.saved[step - 1].trainables.items()}
        assert run.attachment.trained_shapes(state) == held
        assert {key: tuple(tensor.shape) for key, tensor in run.attachment.trainables.items()} == held
    assert run.attachment.side.settled is not None


# ── what it costs ───────────────────────────────────────────────────────────────────────────────────────────────────


def multiply_adds(compute: Callable[[], object]) -> int:
    """What a computation's products come to."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ALL_KINDS)
def test_the_counted_multiply_adds_are_those_that_are_computed(name: str) -> None:
    """What a pass takes more if one more layer computes; a dense mask lets every token meet every other."""
    model, attachment = beside(name, PLAIN)
    batch = usual_batch(model, None)
    rows, columns = batch.tokens_BT.shape
    indices = range(len(attachment.side.macs))
    counts = []
    with torch.no_grad():
        for left_out in (None, *indices):
            attachment.side.settled = tuple(index != left_out for index in indices)
            counts.append(multiply_adds(lambda: model.hidden(batch, "default")))
    num_pairs = rows * columns * (1 if model.classes else columns)
    macs = [each.of(rows * columns, num_pairs, rows) for each in attachment.side.macs]
    assert [counts[0] - others for others in counts[1:]] == macs


# ── files and refusals ──────────────────────────────────────────────────────────────────────────────────────────────


def pruned(folder: Path) -> tuple[LanguageModel, LeTSAttachment]:
    """A model whose adapter was pruned, trained a little, and written."""
    model, attachment = beside(choices=("reuse", "compute"), density=0.05, prune_steps=2)
    draw = torch.Generator().manual_seed(0)
    for step in (1, 2):
        gradients = {key: torch.randn(tensor.shape, generator=draw) for key, tensor in attachment.trainables.items()}
        attachment.after_step(StepDone(step, 8, gradients))
    randomize(attachment)
    folder.mkdir()
    attachment.write(folder, quiet)
    return model, attachment


def test_a_file_holds_a_place_and_a_value_for_each_kept_number(tmp_path: Path) -> None:
    model, attachment = pruned(tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "luthier_adapter.safetensors")
    for name in LINEARS:
        place = f"model.layers.1.self_attn.{name}.delta"
        size = math.prod(attachment.side.deltas[place.removesuffix(".delta")].shape)
        assert tensors[place + ".indices"].dtype == torch.int32
        assert len(tensors[place + ".indices"]) == len(tensors[place + ".values"]) == round(0.05 * size)
    assert not any("layers.0" in name or name == "choice" for name in tensors)
    fresh = tiny_model("llama")
    again = LeTS(begin_from=str(tmp_path)).attach(fresh, "default", seed=5)
    assert_near(logprobs(fresh), logprobs(model), 1e-6)
    assert isinstance(again, LeTSAttachment)
    assert again.choices == ("reuse", "compute")


def test_going_on_from_a_file_keeps_its_choices_and_its_mask(tmp_path: Path) -> None:
    _, attachment = pruned(tmp_path / "adapter")
    run = Run(method=LeTS(begin_from=str(tmp_path)), steps=2)  # too few for a search or a pruning: there is none
    run.go()
    assert isinstance(run.attachment, LeTSAttachment)
    for place, delta in run.attachment.side.deltas.items():
        before_K, values_K = attachment.side.deltas[place].packed()
        after_K, moved_K = delta.packed()
        assert torch.equal(after_K, before_K)
        assert delta.numbers.shape == after_K.shape
        assert_apart(moved_K, values_K, 1e-6)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda t: t.flip(0), "does not name places"),
        (lambda t: t + 10_000, "does not name places"),
        (lambda t: t.float(), "does not name places"),
        (lambda t: t[1:], "has shape"),
    ],
    ids=["out of order", "out of the matrix", "no whole numbers", "one too few"],
)
def test_a_file_with_broken_places_is_refused(tmp_path: Path, damage: Callable[[Tensor], Tensor], found: str) -> None:
    pruned(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "luthier_adapter.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.self_attn.q_proj.delta.indices"
    tensors[name] = damage(tensors[name]).contiguous()
    save_file(tensors, weights)
    with pytest.raises(RecipeError, match=found) as caught:
        LeTS(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.mend


def test_the_choices_and_their_share_are_told_when_the_adapter_is_written(tmp_path: Path) -> None:
    said: list[str] = []
    _, attachment = beside(choices=("reuse", "compute"))
    attachment.write(tmp_path, said.append)
    (sentence,) = said
    assert "1 of 2 layers is computed anew (1), 50% of all attentions' multiply-adds" in sentence
    settings = json.loads((tmp_path / "luthier_adapter.json").read_text())["settings"]
    assert settings["choices"] == ["reuse", "compute"]
    assert settings["macs_share"] == 0.5


def test_choices_that_are_not_one_a_layer_are_refused() -> None:
    with pytest.raises(RecipeError, match="3 entries, and the model 2 layers") as caught:
        LeTS(choices=("reuse",) * 3).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.field == "method.choices"


# ── beside an encoder ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_is_read_as_it_is_alone_and_its_other_tokens_stay_the_base_s(name: str) -> None:
    model, attachment = beside(name, choices=("compute", "compute"))
    randomize(attachment)
    batch = usual_batch(model, "default")
    hidden_BTD, base_BTD = model.hidden(batch, "default"), model.hidden(batch)
    assert_near(hidden_BTD[:, 1:], base_BTD[:, 1:], 1e-6)
    assert_apart(hidden_BTD[:, 0], base_BTD[:, 0])
    alone = [model.forward(collate([row], model.layout, 0), "default").logprob_N for row in usual_rows(model)]
    assert_near(torch.cat(alone), logprobs(model), 1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_only_the_pooled_token_of_each_text_asks(name: str) -> None:
    """Keys and values of all tokens; query and output of one a text, and what it meets of the keys, twice."""
    model, attachment = beside(name, PLAIN)
    batch = usual_batch(model, "default")
    texts, length, d = *batch.tokens_BT.shape, 32
    counts = {}
    with torch.no_grad():
        for settled in ((False, False), (True, True), (False, True)):
            attachment.side.settled = settled
            counts[settled] = multiply_adds(lambda: model.hidden(batch, "default"))
    one, both = (counts[settled] - counts[False, False] for settled in ((False, True), (True, True)))
    assert one == 2 * texts * length * d * d + 2 * texts * d * d + 2 * texts * length * d
    assert one < 4 * texts * length * d * d
    assert attachment.side.macs_share == one / both


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_kept_of_texts_on_the_disk_serves_as_what_the_base_computes(name: str, tmp_path: Path) -> None:
    model, attachment = beside(name, choices=("reuse", "compute"))
    randomize(attachment)
    expected = logprobs(model)
    model.keep_trunk(TrunkCache(tmp_path, attachment.taps, 32, torch.float32))
    for _ in range(2):
        assert_near(logprobs(model), expected, 1e-6)


# ── beside an encoder-decoder ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("choices", [("compute", "reuse", "compute"), ("reuse", "reuse", "compute")])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_whichever_layers_compute_their_attentions_are_the_base_s_with_a_cache_and_without(
    name: str, choices: Any
) -> None:
    """T5's first layer makes the position bias of all, whether or not it computes; Δ is zero here."""
    model, attachment = beside(name, choices=choices)
    read: list[Tensor] = []
    attachment.side.lstm.register_forward_pre_hook(lambda m, args: read.append(args[0]))
    prompt = (5, 9, 30, 4, 17, 8)
    (answer,) = answers(model, [prompt], "default", 6)
    cached_LTD = torch.cat(read, dim=1)
    assert model.answer_start is not None
    tokens = np.array([model.answer_start, *answer])[: cached_LTD.shape[1]]
    assert len(tokens) >= 3
    row = replace(random_row(len(tokens), 0), parts=(Part(tokens),), source_S=np.array(prompt))
    batch = collate([row], model.layout, 0)
    tapped, attended = states_of(model, batch)
    model.hidden(batch, "default")
    expected = [tapped[i + 1] if choice == "reuse" else attended[i] for i, choice in enumerate(choices)]
    assert_near(read[-1], torch.stack([unit(state) for state in expected]), 1e-5)
    assert_near(cached_LTD, read[-1], 1e-5)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_encoder_has_no_part_in_it(name: str) -> None:
    model, attachment = beside(name)
    assert attachment.model.anatomy.encoder is not None
    assert not any(place.startswith(attachment.model.anatomy.encoder) for place in attachment.side.deltas)
    assert len(attachment.choices) == len(model.anatomy.answering) == 3
    attachment.side.gate.data.fill_(0.5)
    graphs: list[bool] = []
    for layer in model.anatomy.layers:
        module = model.hf.get_submodule(layer.name)
        module.register_forward_hook(lambda m, a, out: graphs.append(torch.is_grad_enabled()))
    assert model.forward(usual_batch(model, "default"), "default").logprob_N.requires_grad
    assert graphs == [False] * len(model.anatomy.layers)
