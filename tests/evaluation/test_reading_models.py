"""Measures of models that read: each equal to its definition, worked out by hand or by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from luthier.evaluation.embedding import retrieval_measures, retrieved
from luthier.evaluation.measure import Measure
from luthier.evaluation.metrics import pearson, ranks, spearman
from luthier.evaluation.multiple_choice import by_position, choice_measures
from luthier.evaluation.regression import score_measures
from luthier.evaluation.token_classification import TagGuesses, entity_counts, most_frequent, tag_measures
from luthier.objectives.contract import Whole
from luthier.types import Similar

TAGS = ("B-org", "B-per", "I-org", "I-per", "O")


def values(measures: tuple[Measure, ...], candidate: int) -> dict[str, float]:
    return {measure.name: measure.estimates[candidate].value for measure in measures}


def numbered(text: str) -> np.ndarray:
    return np.array([TAGS.index(tag) for tag in text.split()])


TRUE = [numbered("B-per I-per O B-org"), numbered("O B-per O"), numbered("B-org I-org")]
FOUND = [numbered("B-per I-per O O"), numbered("B-org B-per O"), numbered("B-org O")]


def test_entities_are_counted_whole_over_all_rows() -> None:
    """Right: per in row 1, per in row 2; found: 1 + 2 + 1; there: 2 + 1 + 1. A half of an entity is none."""
    names = [[[TAGS[number] for number in row] for row in rows] for rows in (FOUND, TRUE)]
    assert entity_counts(*names).tolist() == [[1, 1, 2], [1, 2, 1], [0, 1, 1]]
    tuned = TagGuesses("tuned", [np.log(np.eye(5, dtype=np.float32)[row] * 0.6 + 0.08) for row in FOUND])
    measures = tag_measures([most_frequent(TRUE, 5), tuned], TRUE, TAGS)
    found = values(measures, 1)
    assert (found["entity precision"], found["entity recall"], found["entity F1"]) == (0.5, 0.5, 0.5)
    assert found["accuracy"] == pytest.approx(6 / 9)
    assert found["loss"] == pytest.approx(-(6 * math.log(0.68) + 3 * math.log(0.08)) / 9, rel=1e-5)
    majority = values(measures, 0)
    shares = np.bincount(np.concatenate(TRUE), minlength=5) / 9
    assert majority["loss"] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)
    assert majority["accuracy"] == pytest.approx(3 / 9)
    assert majority["entity F1"] == 0


def test_tags_that_mark_no_entities_are_measured_word_by_word() -> None:
    measures = tag_measures([most_frequent(TRUE, 5)], TRUE, ("A", "B", "C", "D", "E"))
    assert [measure.name for measure in measures] == ["loss", "accuracy"]


def test_correlations_are_numpys_and_those_of_mean_ranks() -> None:
    x, y = np.array([1.0, 2, 2, 5, 9]), np.array([3.0, 1, 4, 4, 8])
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert ranks(x).tolist() == [1, 2.5, 2.5, 4, 5]
    by_hand = [1 + (x < each).sum() + ((x == each).sum() - 1) / 2 for each in x]
    assert ranks(x).tolist() == by_hand
    assert spearman(x, y) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4, 5], [2, 1, 3.5, 3.5, 5])[0, 1])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert pearson(x, np.full(5, 0.1)) == 0


def test_the_error_of_the_mean_is_the_variance() -> None:
    true = np.arange(12.0)
    measures = score_measures([np.full(12, true.mean()), true + 0.5], true)
    assert values(measures, 0) == {"mean squared error": pytest.approx(true.var()), "Pearson": 0, "Spearman": 0}
    tuned = values(measures, 1)
    assert (tuned["mean squared error"], tuned["Pearson"]) == (pytest.approx(0.25), pytest.approx(1))
    assert [measure.verdict(1) for measure in measures] == ["better"] * 3


def test_places_have_the_shares_of_the_right_options_among_as_many_as_there_are() -> None:
    right, counts = [0, 1, 1, 2], [2, 2, 3, 3]
    places = by_position(right, counts)
    assert np.exp(places[0]).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert np.exp(places[2]).tolist() == pytest.approx([0.25, 0.5, 0.25])
    found = values(choice_measures([places], right), 0)
    assert found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-math.log(1 / 3 * 2 / 3 * 0.5 * 0.25) / 4, rel=1e-5)


def whole_of(vectors: list[list[torch.Tensor]]) -> Whole:
    return Whole(
        F.normalize(torch.stack([vector for row in vectors for vector in row]), dim=-1),
        torch.tensor([index for index, row in enumerate(vectors) for _ in row]),
        torch.tensor([sample for row in vectors for sample in range(len(row))]),
    )


def test_ranks_are_those_among_the_different_positives_of_all_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    texts = {name: torch.randn(4, generator=generator) for name in "abcdexyz"}
    records = [Similar("a", "x"), Similar("b", "y", ("e",)), Similar("a", "z"), Similar("x", "y"), Similar("c", "x")]
    vectors = [[texts[name] for name in (r.anchor, r.positive, *r.negatives)] for r in records]
    found = retrieved(whole_of(vectors), records, 0.05)
    expected = []
    for record in records:
        ours = {r.positive for r in records if r.anchor == record.anchor} | {record.anchor}
        near = {t: float(F.cosine_similarity(texts[record.anchor], texts[t], dim=0)) for t in "xyz"}
        expected.append(1 + sum(near[t] >= near[record.positive] for t in "xyz" if t not in ours))
    assert found.ranks == expected
    assert found.nearest[2] in ("y", "z")  # x is right for this anchor too, and is no other
    measures = values(retrieval_measures([found]), 0)
    assert measures["accuracy@1"] == pytest.approx(sum(rank == 1 for rank in expected) / 5)
    assert measures["MRR"] == pytest.approx(sum(1 / rank for rank in expected) / 5)


def test_a_model_to_which_all_texts_are_alike_finds_none() -> None:
    records = [Similar(f"a{i}", f"p{i}") for i in range(6)]
    found = retrieved(whole_of([[torch.ones(4), torch.ones(4)]] * 6), records, 0.05)
    assert found.ranks == [6] * 6
    assert found.losses == pytest.approx([math.log(6)] * 6, rel=1e-5)
