"""Several adapters over the same rows, or each over its own rows of a batch: the frozen model runs once for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.examples import fitting
from models.rows import batch_of
from models.tiny import ENCODER_DECODERS, tiny_model
from models.tuned import LENGTHS, randomize, usual_batch
from near import assert_all_near, assert_apart, assert_near

from luthier.methods import AttentionFusion, Ladder, LeTS, LoRA, Method
from luthier.models.call import Draws
from luthier.models.language_model import LanguageModel
from luthier.models.taps import Taps
from luthier.models.trunk import TrunkCache

SIDES: tuple[tuple[str, Method], ...] = (
    ("first task", LeTS(width=6, choices=("reuse", "compute"))),
    ("second task", LeTS(width=4, choices=("compute", "compute"))),
    ("still searching", LeTS(width=5)),
    ("fused", AttentionFusion()),
    ("laddered", Ladder(reduction=2)),
)
NAMES = tuple(name for name, _ in SIDES)


def with_sides(name: str) -> LanguageModel:
    """A tiny model with several side networks, no two alike."""
    model = tiny_model(name)
    for index, (adapter, method) in enumerate(SIDES):
        fit = fitting(method, name) if isinstance(method, LeTS) else method
        randomize(fit.attach(model, adapter, seed=index), 0.1 + 0.02 * index)
    return model


def count_calls(model: LanguageModel) -> list[str]:
    """From now on, the base's layers that compute something."""
    calls: list[str] = []
    for layer in model.anatomy.layers:
        down = model.hf.get_submodule(layer.down)
        down.register_forward_hook(lambda m, args, output, name=layer.name: calls.append(name))
    return calls


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-new", "bloom", "bert", "roberta", "t5", "bart"])
def test_several_tasks_over_the_same_rows_are_as_one_by_one_and_the_base_runs_once(name: str) -> None:
    model = with_sides(name)
    batch = usual_batch(model, None)
    alone = {adapter: model.forward(batch, adapter, Draws(0, 1)).logprob_N for adapter in NAMES}
    calls = count_calls(model)
    together = model.forward_each(batch, NAMES, Draws(0, 1))
    assert calls == [layer.name for layer in model.anatomy.layers]
    assert_all_near({adapter: outputs.logprob_N for adapter, outputs in together.items()}, alone, 1e-6)
    assert all(outputs.logprob_N.requires_grad for outputs in together.values())


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_beside_an_encoder_decoder_each_is_as_alone_and_both_stacks_run_once(name: str) -> None:
    model = tiny_model(name)
    names = ("fused", "laddered", "shared")
    for index, method in enumerate((AttentionFusion(), Ladder(reduction=2), LeTS(width=6))):
        randomize(method.attach(model, names[index], seed=index), 0.1 + 0.02 * index)
    batch = usual_batch(model, None)
    alone = {adapter: model.forward(batch, adapter).logprob_N for adapter in names}
    assert_apart(alone["fused"], alone["laddered"])
    calls = count_calls(model)
    together = model.forward_each(batch, names)
    assert calls == [layer.name for layer in model.anatomy.layers]
    assert_all_near({adapter: outputs.logprob_N for adapter, outputs in together.items()}, alone, 1e-6)


@pytest.mark.parametrize("name", ["llama", "falcon-new", "bert"])
def test_rows_of_several_tasks_in_one_batch_are_as_alone_and_the_base_runs_once(name: str) -> None:
    model = with_sides(name)
    batch = usual_batch(model, None)
    whose = NAMES[:4]
    starts = torch.tensor([segment.start for segment in batch.segments][1:])
    row_N = torch.bucketize(batch.targets.source_N, starts, right=True)
    alone = {adapter: model.forward(batch, adapter).logprob_N for adapter in whose}
    calls = count_calls(model)
    mixed_N = model.forward(batch, whose).logprob_N
    assert calls == [layer.name for layer in model.anatomy.layers]
    for row, adapter in enumerate(whose):
        assert_near(mixed_N[row_N == row], alone[adapter][row_N == row], 1e-5)


def test_with_what_is_kept_of_the_rows_the_base_does_not_run_at_all(tmp_path: Path) -> None:
    model = with_sides("llama")
    batch = batch_of(LENGTHS, model.layout)
    expected = {adapter: model.forward(batch, adapter).logprob_N for adapter in NAMES}
    model.keep_trunk(TrunkCache(tmp_path, Taps((0, 1, 2)), 32, torch.float32))
    calls = count_calls(model)
    for _ in range(2):
        together = model.forward_each(batch, NAMES)
        assert_all_near({adapter: outputs.logprob_N for adapter, outputs in together.items()}, expected, 1e-6)
    assert calls == [layer.name for layer in model.anatomy.layers]


def test_an_adapter_within_the_base_takes_a_pass_of_its_own() -> None:
    model = with_sides("llama")
    randomize(LoRA(rank=2).attach(model, "within", seed=0))
    batch = batch_of(LENGTHS, model.layout)
    alone = model.forward(batch, "within").logprob_N
    calls = count_calls(model)
    together = model.forward_each(batch, ("fused", "within", "first task"))
    assert len(calls) == 2 * len(model.anatomy.layers)
    assert list(together) == ["fused", "within", "first task"]
    assert_near(together["within"].logprob_N, alone, 1e-6)
    assert_near(together["fused"].logprob_N, model.forward(batch, "fused").logprob_N, 1e-6)


def test_what_is_watched_is_the_base_s_attention_whatever_stands_beside_it() -> None:
    model = with_sides("llama")
    batch = batch_of((6,), model.layout)
    assert model.attention(batch, "laddered").shape[0] == len(model.anatomy.layers)
    assert torch.equal(model.attention(batch, "second task"), model.attention(batch, None))
