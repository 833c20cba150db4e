"""The forward pass from batches to log-probabilities: which adapter, which positions, which draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models.rows import batch_of, plain_logprobs, random_row, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, every_target, random_lora, randomize
from near import assert_all_near, assert_apart, assert_near

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.methods import LoRA
from luthier.models.call import Draws
from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.loading import choose_device, choose_dtype
from luthier.types import Example, Origin, Part

FAMILIES = ("llama", "gpt2", "falcon-new")


def with_two_adapters(name: str, **settings: object) -> LanguageModel:
    """A model that holds adapters `one` and `two`."""
    model = tiny_model(name)
    random_lora(model, "one", **settings)
    two = LoRA(rank=5, alpha=3, **settings).attach(model, "two", seed=8)
    randomize(two, 0.2)
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", "every-kind"])
def test_an_adapter_for_each_document_of_one_batch_equals_separate_runs(name: str, targets: str) -> None:
    chosen = "all-linear" if targets == "all-linear" else every_target(tiny_model(name))
    model = with_two_adapters(name, targets=chosen)
    names = ("one", None, "two", "two", "one")
    rows = random_rows((7, 5, 2, 9, 4))
    mixed = model.forward(collate(rows, model.layout, 0), names).logprob_N
    alone = [
        model.forward(collate([row], model.layout, 0), adapter).logprob_N
        for row, adapter in zip(rows, names, strict=True)
    ]
    assert_near(mixed, torch.cat(alone))
    # and it matters who computes which
    assert_apart(mixed, model.forward(collate(rows, model.layout, 0), "one").logprob_N)


@pytest.mark.parametrize("name", FAMILIES)
def test_mixed_adapters_get_the_gradients_of_their_own_documents_dropout_included(name: str) -> None:
    model = with_two_adapters(name, dropout=0.4)
    banks = [model.hf.get_submodule(target) for target in model.anatomy.linears]
    wanted = [bank.branch(one).tensors["lora_A.weight"] for one in ("one", "two") for bank in banks]
    rows, names, draws = random_rows((7, 5, 9)), ("one", "two", "one"), Draws(3, 4)
    mixed = torch.autograd.grad(
        model.forward(collate(rows, model.layout, 0), names, draws).logprob_N.sum(), wanted, materialize_grads=True
    )
    total = None
    for row, adapter in zip(rows, names, strict=True):
        loss = model.forward(collate([row], model.layout, 0), adapter, draws).logprob_N.sum()
        alone = torch.autograd.grad(loss, wanted, materialize_grads=True)
        total = alone if total is None else tuple(a + b for a, b in zip(total, alone, strict=True))
    assert total is not None
    assert_all_near(mixed, total)


def test_no_adapter_is_the_base_model_whatever_is_attached() -> None:
    model = with_two_adapters("llama")
    expected = plain_logprobs(plain_model("llama"), random_rows(LENGTHS))
    assert_near(model.forward(batch_of(LENGTHS, "packed")).logprob_N, expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt"])
def test_two_answers_to_one_shared_prompt_get_what_each_gets_in_a_row_of_its_own(name: str) -> None:
    model = tiny_model(name)
    prompt, *answers = (random_row(length, document).parts[0].tokens_T for document, length in enumerate((6, 4, 7)))
    sources = [np.array([5, *range(6, 9)]), np.array([5, *range(10, 16)])]
    shared = Example(
        parts=(Part(prompt), Part(answers[0], parent=0), Part(answers[1], parent=0)),
        source_N=np.concatenate(sources),
        token_N=np.concatenate(answers),
        weight_N=np.ones(11, dtype=np.float32),
        sample_N=np.array([0] * 4 + [1] * 7),
        document=0,
        origin=Origin("rows", 1),
    )
    alone = [
        Example(
            parts=(Part(np.concatenate([prompt, answer])),),
            source_N=np.arange(5, 5 + len(answer)),
            token_N=answer,
            weight_N=np.ones(len(answer), dtype=np.float32),
            sample_N=np.zeros(len(answer), dtype=np.int64),
            document=0,
            origin=Origin("rows", 1),
        )
        for answer in answers
    ]
    # another document first, so that no segment index is its own
    before = random_row(3, 9)
    together = model.forward(collate([before, shared], "packed", 0)).logprob_N[before.num_learned :]
    assert_near(together, plain_logprobs(plain_model(name), alone))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mistral"])
def test_rows_that_share_a_beginning_give_the_values_and_gradients_of_rows_that_do_not(name: str) -> None:
    model = tiny_model(name)
    weights = list(random_lora(model).trainables.values())
    rows = [behind(random_row(12, 99), random_row(length, number)) for number, length in enumerate((7, 3, 9))]
    results = []
    for shares in (False, True):
        batch = collate(rows, "packed", 0, shares_prefix=shares)
        logprob_N = model.forward(batch, "default").logprob_N
        results.append([logprob_N, *torch.autograd.grad(logprob_N.sum(), weights)])
    assert batch.num_real_tokens == 12 + sum(row.num_tokens - 12 for row in rows)
    assert_all_near(*results)


def behind(prefix: Example, row: Example) -> Example:
    """The row after the tokens of another, of which nothing is learned."""
    tokens = np.concatenate([prefix.parts[0].tokens_T, row.parts[0].tokens_T])
    return replace(row, parts=(Part(tokens),), source_N=row.source_N + prefix.num_tokens)


def test_more_learned_positions_than_one_chunk_holds_are_all_computed() -> None:
    rows = [random_row(60, document, learned=1.0) for document in range(6)]
    model = tiny_model("phi")
    batch = collate(rows, "packed", 0)
    assert len(batch.targets.token_N) > 2 * 128
    assert_near(model.forward(batch).logprob_N, plain_logprobs(plain_model("phi"), rows))


def test_a_head_with_an_adapter_is_chunked_and_still_gives_each_document_its_own() -> None:
    model = with_two_adapters("llama", targets=("lm_head", "q_proj"))
    rows = [random_row(60, document, learned=1.0) for document in range(5)]
    names = ("two", "one", None, "one", "two")
    mixed = model.forward(collate(rows, "packed", 0), names).logprob_N
    alone = [model.forward(collate([r], "packed", 0), n).logprob_N for r, n in zip(rows, names, strict=True)]
    assert_near(mixed, torch.cat(alone))


def test_the_head_runs_at_learned_positions_only() -> None:
    model = tiny_model("llama", FastModel(head=False))
    rows: list[int] = []
    model.hf.get_submodule("lm_head").register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    batch = batch_of((30, 20), "packed")
    outputs = model.forward(batch)
    assert rows == []  # nothing was asked of it yet
    assert outputs.logprob_N.shape == batch.targets.token_N.shape
    assert rows == [len(batch.targets.token_N)]
    assert rows[0] < 50


def test_a_batch_in_which_nothing_is_learned_gives_no_log_probabilities_and_zero_gradients() -> None:
    nothing = replace(
        random_row(5, 0),
        source_N=np.zeros(0, dtype=np.int64),
        token_N=np.zeros(0, dtype=np.int64),
        weight_N=np.zeros(0, dtype=np.float32),
        sample_N=np.zeros(0, dtype=np.int64),
    )
    for fast in (FastModel(), FastModel(head=False)):
        model = tiny_model("llama", fast)
        attachment = random_lora(model)
        logprob_N = model.forward(collate([nothing], "packed", 0), attachment.adapter).logprob_N
        assert logprob_N.shape == (0,)
        gradients = torch.autograd.grad(
            logprob_N.sum(), list(attachment.trainables.values()), allow_unused=True, materialize_grads=True
        )
        assert all(float(gradient.abs().sum()) == 0 for gradient in gradients)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_draws_the_same_however_the_rows_are_cut_into_micro_batches(name: str) -> None:
    model = tiny_model(name)
    attachment = random_lora(model, dropout=0.5)
    rows, draws = random_rows(LENGTHS), Draws(7, 3)
    together = model.forward(collate(rows, model.layout, 0), attachment.adapter, draws).logprob_N
    halves = [
        model.forward(collate(rows[half], model.layout, 0), attachment.adapter, draws).logprob_N
        for half in (slice(0, 1), slice(1, None))
    ]
    assert_near(together, torch.cat(halves))
    for other in (None, Draws(7, 4), Draws(8, 3)):
        away = model.forward(collate(rows, model.layout, 0), attachment.adapter, other).logprob_N
        assert_apart(away, together)


def test_autocast_computes_in_bf16_and_keeps_fp32_log_probabilities() -> None:
    model = tiny_model("llama")
    attachment = random_lora(model)
    batch = batch_of(LENGTHS, "packed")
    exact = model.forward(batch, attachment.adapter).logprob_N
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.forward(batch, attachment.adapter).logprob_N
    assert mixed.dtype == torch.float32
    assert_near(mixed, exact, 0.02)
    assert_apart(mixed, exact, 1e-5)
    gradients = torch.autograd.grad(mixed.sum(), list(attachment.trainables.values()))
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_what_the_model_says_of_itself() -> None:
    model = tiny_model("llama")
    assert (model.layout, tiny_model("falcon").layout) == ("packed", "bucketed")
    assert model.vocab_size == 61
    assert model.context_length == tiny_model("gpt2").context_length == 64
    assert model.stop_ids == frozenset({2})
    assert model.dtype == torch.float32


def test_a_device_that_is_not_there_or_not_one_is_refused_with_the_field() -> None:
    for name in ("nonsense", "meta", "cpu:x"):
        with pytest.raises(RecipeError) as refused:
            choose_device(name)
        assert refused.value.field == "model.device"
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("bf16", torch.device("cpu")) == torch.bfloat16
