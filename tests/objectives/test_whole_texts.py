"""Objectives that read whole texts: their losses are those of transformers' own models, in whatever micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models.tiny import CLASSES, plain_model, tiny_model
from near import assert_all_near, assert_near
from objectives.rendered import ORIGIN, side_by_side, text
from torch import Tensor
from transformers import BertForMultipleChoice

from luthier.data.packing import collate
from luthier.errors import DataError
from luthier.models.language_model import LanguageModel
from luthier.objectives import Embedding, MultipleChoice, Regression, TokenClassification
from luthier.objectives.contract import joined
from luthier.objectives.embedding import info_nce
from luthier.objectives.multiple_choice import grouped_log_softmax
from luthier.training.joint import gradients_of, surrogate
from luthier.types import Batch, Example, Rendered

LENGTHS = (7, 4, 9, 5)
PURPOSES = {"token-classification": "tags", "regression": "number"}


def batch_of(model: LanguageModel, rows: list[Example]) -> Batch:
    return collate(rows, model.layout, pad_id=model.pad_id)


def own_texts(name: str) -> list[Rendered]:
    pooled = tiny_model(name).anatomy.family.pooled
    return [text(length, index, pooled, second=2 * (index == 2)) for index, length in enumerate(LENGTHS)]


def inputs_of(name: str, row: Rendered) -> dict[str, Any]:
    """What plain transformers is called with for a text alone."""
    inputs = {"input_ids": torch.from_numpy(row.tokens_T)[None]}
    if name == "bert" and row.types_T is not None:
        inputs["token_type_ids"] = torch.from_numpy(row.types_T)[None]
    return inputs


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "falcon"])
def test_regression_is_the_squared_error_of_transformers(name: str) -> None:
    scores = (0.5, -2.0, 3.0, 1.0)
    rows = [replace(row, score=score) for row, score in zip(own_texts(name), scores, strict=True)]
    plain, model = plain_model(name, purpose="number"), tiny_model(name, purpose="number")
    expected = [
        plain(**inputs_of(name, row), labels=torch.tensor([score])).loss
        for row, score in zip(rows, scores, strict=True)
    ]
    examples = [Regression().example(row, index, ORIGIN) for index, row in enumerate(rows)]
    batch = batch_of(model, examples)
    assert_near(Regression().loss_sum(model.forward(batch)), torch.stack(expected).sum())
    assert batch.learned_weight == len(rows)
    assert (model.classes, plain.config.problem_type) == (("score",), "regression")


# ── tags ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tagged(row: Rendered, every: int) -> Rendered:
    at_K = np.arange(1, len(row.tokens_T) - 1, every, dtype=np.int64)
    return replace(row, tags=tuple(CLASSES[at % len(CLASSES)] for at in at_K), tag_K=at_K)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "gpt2", "falcon"])
def test_tags_have_the_cross_entropy_of_transformers_at_the_first_token_of_each_word(name: str) -> None:
    rows = [tagged(row, every=2) for row in own_texts(name)]
    plain, model = plain_model(name, purpose="tags"), tiny_model(name, purpose="tags")
    expected = torch.zeros(())
    for row in rows:
        labels = torch.full((1, len(row.tokens_T)), -100)
        assert row.tag_K is not None
        labels[0, row.tag_K] = torch.tensor([CLASSES.index(tag) for tag in row.tags])
        expected = expected + plain(**inputs_of(name, row), labels=labels).loss * len(row.tags)
    objective = TokenClassification(classes=CLASSES)
    batch = batch_of(model, [objective.example(row, index, ORIGIN) for index, row in enumerate(rows)])
    assert_near(objective.loss_sum(model.forward(batch)), expected)
    assert batch.learned_weight == sum(len(row.tags) for row in rows)


def test_a_tag_that_is_no_class_is_refused_at_its_line() -> None:
    row = replace(text(4, 0), tags=("a", "?"), tag_K=np.array([1, 2]))
    with pytest.raises(DataError, match=r"'\?' is none of the classes") as caught:
        TokenClassification(classes=("a", "b")).example(row, 0, ORIGIN)
    assert (caught.value.line, caught.value.field) == (ORIGIN.line, "tags[1]")


# ── options ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_choosing_has_the_loss_of_transformers_multiple_choice_models() -> None:
    rows = [side_by_side((6, 6, 6), 1, chosen=2), side_by_side((5, 5, 5), 2, chosen=0)]
    model = tiny_model("bert", purpose="number")
    plain = BertForMultipleChoice(model.hf.config).eval()
    plain.load_state_dict(model.hf.state_dict())
    expected = torch.zeros(())
    for row in rows:
        ids = torch.tensor(np.stack([one.tokens_T for one in row.texts]))[None]
        expected = expected + plain(input_ids=ids, labels=torch.tensor([row.chosen])).loss
    examples = [MultipleChoice().example(row, index, ORIGIN) for index, row in enumerate(rows)]
    batch = batch_of(model, examples)
    assert_near(MultipleChoice().loss_sum(model.forward(batch)), expected.detach())
    assert batch.learned_weight == 2


@pytest.mark.parametrize("name", ["bert", "llama", "falcon"])
def test_questions_with_options_in_any_number_and_length_are_the_same_alone_and_together(name: str) -> None:
    model = tiny_model(name, purpose="number")
    pooled = model.anatomy.family.pooled
    rows = [side_by_side(lengths, k, pooled, k) for k, lengths in enumerate(((3, 8), (4, 2, 7), (5, 5, 5, 1)))]
    examples = [MultipleChoice().example(row, index, ORIGIN) for index, row in enumerate(rows)]
    together = MultipleChoice().loss_sum(model.forward(batch_of(model, examples)))
    apart = [MultipleChoice().loss_sum(model.forward(batch_of(model, [example]))) for example in examples]
    assert_near(together, torch.stack(apart).sum())
    for row, example in zip(rows, examples, strict=True):  # the scores are those of each option as a text alone
        alone = [replace(one, score=0.0) for one in row.texts]
        singles = [Regression().example(one, index, ORIGIN) for index, one in enumerate(alone)]
        scores = model.forward(batch_of(model, singles)).logits_NC[:, 0]
        expected = -scores.log_softmax(0)[row.chosen]
        assert_near(MultipleChoice().loss_sum(model.forward(batch_of(model, [example]))), expected)


def test_a_softmax_within_groups_is_that_of_each_group() -> None:
    score_N = torch.tensor([1e4, 1.0, -3.0, 2.0, 700.0], requires_grad=True)
    row_N = torch.tensor([0, 0, 1, 1, 2])
    found = grouped_log_softmax(score_N, row_N, 3)
    expected = torch.cat([score_N[:2].log_softmax(0), score_N[2:4].log_softmax(0), score_N[4:].log_softmax(0)])
    assert_near(found, expected)
    weight_N = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    gradients = [
        torch.autograd.grad((one * weight_N).sum(), score_N, retain_graph=True)[0] for one in (found, expected)
    ]
    assert_near(*gradients)


# ── vectors ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def vectors_alone(model: LanguageModel, row: Rendered, pooling: str) -> list[Tensor]:
    """The vector of each text of a row, each computed alone."""
    found = []
    for one in row.texts:
        example = Regression().example(replace(one, score=0.0), 0, ORIGIN)
        states_TD = model.hidden(batch_of(model, [example]))[0]
        at = 0 if one.pooled == "first" else len(one.tokens_T) - 1
        found.append(F.normalize(states_TD.mean(0) if pooling == "mean" else states_TD[at], dim=-1))
    return found


@pytest.mark.parametrize("pooling", ["mean", "token"])
@pytest.mark.parametrize("name", ["bert", "llama", "falcon"])
def test_a_vector_is_the_normalised_mean_or_the_state_of_one_token(name: str, pooling: Any) -> None:
    model = tiny_model(name, purpose="words")
    rows = [side_by_side(lengths, k, model.anatomy.family.pooled) for k, lengths in enumerate(((3, 8), (4, 2, 7)))]
    objective = Embedding(pooling=pooling)
    examples = [objective.example(row, index, ORIGIN) for index, row in enumerate(rows)]
    whole = objective.whole(model.forward(batch_of(model, examples)))
    expected = [vector for row in rows for vector in vectors_alone(model, row, pooling)]
    assert_near(whole.vector_MD, torch.stack(expected))
    assert (whole.row_M.tolist(), whole.sample_M.tolist()) == ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
    assert batch_of(model, examples).learned_weight == len(rows)


def test_the_contrastive_loss_is_the_cross_entropy_of_each_anchor_among_all_candidates() -> None:
    model = tiny_model("bert", purpose="words")
    rows = [side_by_side(lengths, k) for k, lengths in enumerate(((3, 8), (4, 2, 7), (5, 6)))]
    examples = [Embedding().example(row, index, ORIGIN) for index, row in enumerate(rows)]
    whole = Embedding().whole(model.forward(batch_of(model, examples)))
    anchors, candidates = whole.vector_MD[[0, 2, 5]], whole.vector_MD[[1, 3, 4, 6]]
    expected = F.cross_entropy(anchors @ candidates.T / 0.05, torch.tensor([0, 1, 3]), reduction="sum")
    assert_near(info_nce(whole, 0.05), expected)


def test_any_cut_of_a_step_has_the_loss_and_gradient_of_the_whole_step() -> None:
    model = tiny_model("bert", purpose="words")
    weight = model.hf.get_parameter(f"{model.anatomy.linears[0]}.weight").requires_grad_()
    rows = [side_by_side(lengths, k) for k, lengths in enumerate(((3, 8), (4, 2, 7), (5, 6), (2, 2)))]
    examples = [Embedding().example(row, index, ORIGIN) for index, row in enumerate(rows)]
    whole = Embedding().loss_sum(model.forward(batch_of(model, examples)))
    (expected,) = torch.autograd.grad(whole, weight)
    batches = [batch_of(model, examples[:1]), batch_of(model, examples[1:3]), batch_of(model, examples[3:])]
    with torch.no_grad():
        parts = [Embedding().whole(model.forward(batch)) for batch in batches]
    loss, gradients = gradients_of(Embedding(), parts)
    assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
    assert joined(parts).row_M.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3]
    pieces = [
        torch.autograd.grad(surrogate(Embedding(), model.forward(batch), gradient_MD), weight)[0]
        for batch, gradient_MD in zip(batches, gradients, strict=True)
    ]
    assert_all_near([torch.stack(pieces).sum(0)], [expected])


def test_options_side_by_side_take_the_positions_of_the_longest_alone() -> None:
    assert MultipleChoice().example(side_by_side((3, 8, 5), 1), 0, ORIGIN).longest_stream == 8
