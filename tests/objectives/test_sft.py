"""Supervised fine-tuning: which positions are targets, and what their loss is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from models.rows import batch_of
from models.tiny import VOCABULARY, plain_model, tiny_model
from models.tuned import usual_batch, usual_rows
from near import assert_apart, assert_near
from transformers.trainer_pt_utils import LabelSmoother

from luthier.data.packing import collate
from luthier.methods import LoRA
from luthier.models.call import Draws
from luthier.models.noise import noise_embeddings
from luthier.objectives import SFT
from luthier.objectives.likelihood import nll_sum
from luthier.types import Example, Origin, Rendered

ORIGIN = Origin("rows.jsonl", 4)


def rendered(weights: list[float]) -> Rendered:
    """Tokens 10, 11, … with such weights."""
    tokens = np.arange(10, 10 + len(weights), dtype=np.int64)
    return Rendered(tokens, np.array(weights, dtype=np.float32))


def written(document: int, length: int) -> Example:
    """A row of random words of which the second half is learned."""
    tokens_T = np.random.default_rng(document).integers(3, VOCABULARY - 1, length, dtype=np.int64)
    weight_T = (np.arange(length) >= length // 2).astype(np.float32)
    return SFT().example(Rendered(tokens_T, weight_T), document, ORIGIN)


def test_each_learned_token_is_a_target_at_the_position_before_it() -> None:
    example = SFT().example(rendered([0, 0, 1, 0.5, 0, 2]), document=7, origin=ORIGIN)
    assert example.source_N.tolist() == [1, 2, 4]
    assert example.token_N.tolist() == [12, 13, 15]
    assert example.weight_N.tolist() == [1, 0.5, 2]
    assert example.sample_N.tolist() == [0, 0, 0]
    assert (example.document, example.origin) == (7, ORIGIN)
    assert example.parts[0].tokens_T.tolist() == [10, 11, 12, 13, 14, 15]
    assert (example.parts[0].parent, example.parts[0].causal, len(example.parts)) == (None, True, 1)


def test_the_first_token_is_never_a_target_because_nothing_stands_before_it() -> None:
    example = SFT().example(rendered([1, 1]), document=0, origin=ORIGIN)
    assert example.source_N.tolist() == [0]
    assert example.token_N.tolist() == [11]


@pytest.mark.parametrize("weights", [[], [1.0], [0.0, 0.0, 0.0]])
def test_a_row_that_teaches_nothing_has_no_targets(weights: list[float]) -> None:
    example = SFT().example(rendered(weights), document=0, origin=ORIGIN)
    assert example.num_learned == 0
    assert example.num_tokens == len(weights)
    assert example.weight_N.dtype == np.float32


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=12))
def test_every_positive_weight_after_the_first_becomes_exactly_one_target(weights: list[float]) -> None:
    example = SFT().example(rendered(weights), document=0, origin=ORIGIN)
    assert [(s + 1, w) for s, w in zip(example.source_N.tolist(), example.weight_N.tolist(), strict=True)] == [
        (t, w) for t, w in enumerate(weights) if t > 0 and w > 0
    ]
    assert all(example.parts[0].tokens_T[s + 1] == y for s, y in zip(example.source_N, example.token_N, strict=True))


def test_the_loss_is_the_weighted_sum_of_negative_log_likelihoods() -> None:
    logprob_N = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    loss = nll_sum(logprob_N, torch.tensor([1.0, 0.5, 2.0]))
    assert loss.item() == pytest.approx(3.0)
    assert torch.autograd.grad(loss, logprob_N)[0].tolist() == [-1.0, -0.5, -2.0]


def test_sums_over_parts_of_a_batch_add_up_to_the_whole() -> None:
    logprob_N, weight_N = torch.randn(9), torch.rand(9)
    parts = [nll_sum(logprob_N[a:b], weight_N[a:b]) for a, b in ((0, 4), (4, 4), (4, 9))]
    torch.testing.assert_close(sum(parts), nll_sum(logprob_N, weight_N))


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5"])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.1, 0.0), (0.0, 1e-2), (0.3, 1e-3)])
def test_smoothing_and_z_loss_are_those_of_whole_logits(name: str, smoothing: float, z_loss: float) -> None:
    model = tiny_model(name)
    batch = usual_batch(model, None)
    outputs = model.forward(batch)
    logits_NV = outputs.head.logits(outputs.hidden_ND)
    loss_N = F.cross_entropy(logits_NV, batch.targets.token_N, reduction="none", label_smoothing=smoothing)
    loss_N = loss_N + z_loss * logits_NV.logsumexp(-1).square()
    objective = SFT(label_smoothing=smoothing, z_loss=z_loss)
    assert_near(objective.loss_sum(outputs), (loss_N * batch.targets.weight_N).sum())
    plain_N = F.cross_entropy(logits_NV, batch.targets.token_N, reduction="none")
    assert_near(objective.held_out_sum(outputs), (plain_N * batch.targets.weight_N).sum())


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_smoothing_is_that_of_torch_and_of_the_label_smoother_of_transformers(name: str) -> None:
    """All three spread ε over the whole vocabulary, the target included. They differ in what they divide by: the label smoother
    by a micro-batch's targets (or by what Trainer counts in a step), torch likewise, Luthier by the weights of the whole step.
    """
    epsilon = 0.2
    plain, model = plain_model(name), tiny_model(name)
    rows = [written(number, length) for number, length in enumerate((9, 6, 12))]
    if name == "t5":
        rows = [replace(row, source_S=row.parts[0].tokens_T[::-1].copy()) for row in rows]
    by_transformers, by_torch, num_targets = torch.zeros(()), torch.zeros(()), 0
    for row in rows:
        ids, labels = torch.from_numpy(row.parts[0].tokens_T)[None], torch.full((1, row.parts[0].tokens_T.size), -100)
        labels[0, row.source_N] = torch.from_numpy(row.token_N)
        is_pair = row.source_S is not None
        inputs = (
            {"input_ids": torch.from_numpy(row.source_S)[None], "decoder_input_ids": ids}
            if is_pair
            else {"input_ids": ids}
        )
        output = plain(**inputs)
        shifts = not is_pair  # a decoder's labels stand where the tokens do, one after the logits that foretell them
        placed = labels if is_pair else torch.cat([torch.full((1, 1), -100), labels[:, :-1]], dim=1)
        smoother = LabelSmoother(epsilon=epsilon)
        by_transformers = by_transformers + smoother(output, placed, shift_labels=shifts) * row.num_learned
        of_torch = torch.nn.CrossEntropyLoss(label_smoothing=epsilon, reduction="sum")
        by_torch = by_torch + of_torch(output.logits[0], labels[0])
        num_targets += row.num_learned
    outputs = model.forward(collate(rows, model.layout, model.pad_id))
    found = SFT(label_smoothing=epsilon).loss_sum(outputs)
    assert_near(found, by_transformers)
    assert_near(found, by_torch)
    assert float(outputs.targets.weight_N.sum()) == num_targets


def test_the_gradient_of_the_smoothed_loss_flows_through_chunks_that_are_computed_again() -> None:
    model = tiny_model("llama")
    LoRA(rank=2).attach(model, "default", seed=0)
    batch = batch_of((130, 120), model.layout)  # more targets than a chunk holds
    outputs = model.forward(batch, "default")
    hidden_ND = outputs.hidden_ND.detach().requires_grad_()
    again = replace(outputs, hidden_ND=hidden_ND)
    objective = SFT(label_smoothing=0.2, z_loss=1e-2)
    (found,) = torch.autograd.grad(objective.loss_sum(again), hidden_ND)
    logits_NV = again.head.logits(hidden_ND)
    loss_N = F.cross_entropy(logits_NV, batch.targets.token_N, reduction="none", label_smoothing=0.2)
    whole = ((loss_N + 1e-2 * logits_NV.logsumexp(-1).square()) * batch.targets.weight_N).sum()
    (expected,) = torch.autograd.grad(whole, hidden_ND)
    assert_near(found, expected)


# ── noise on the embeddings ─────────────────────────────────────────────────────────────────────────────────────────


def test_noise_has_the_size_that_the_paper_gives_and_only_where_it_is_asked_for() -> None:
    model = tiny_model("llama")
    noise_embeddings(model.hf, model.anatomy)
    seen: list[torch.Tensor] = []
    model.hf.get_submodule(model.anatomy.embedding).register_forward_hook(lambda m, i, out: seen.append(out))
    batch = batch_of((6, 60), model.layout)
    for draws in (None, Draws(1, 1), Draws(1, 1, noise=5.0), Draws(1, 2, noise=5.0), Draws(1, 1, noise=5.0)):
        model.forward(batch, None, draws).logprob_N.sum()
    plain, without, noisy, later, again = (x[0] for x in seen)
    assert torch.equal(plain, without)
    assert torch.equal(noisy, again)
    assert_apart(noisy, later)
    width = plain.shape[-1]
    for rows, length in ((slice(0, 6), 6), (slice(6, 66), 60)):
        most = 5.0 / (length * width) ** 0.5
        drawn = (noisy - plain)[rows]
        assert 0.9 * most < float(drawn.abs().max()) <= most * (1 + 1e-5)
        assert abs(float(drawn.square().mean()) - most**2 / 3) < 0.25 * most**2 / 3  # uniform: a third of the square


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_noise_is_the_same_in_any_cut_into_micro_batches(name: str) -> None:
    model = tiny_model(name)
    noise_embeddings(model.hf, model.anatomy)
    rows = usual_rows(model)
    draws = Draws(3, 7, noise=5.0)
    together = model.forward(collate(rows, model.layout, 0), None, draws).logprob_N
    apart = [model.forward(collate([row], model.layout, 0), None, draws).logprob_N for row in rows]
    assert_near(together, torch.cat(apart))
    assert_apart(together, model.forward(collate(rows, model.layout, 0)).logprob_N)
