"""Penalties and biases: the formulas, and that only the rows that ask for them change."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from luthier.generation.engine import Request, generate
from luthier.generation.penalties import Seen, add_biases, penalised
from luthier.generation.settings import Sampling

CPU = torch.device("cpu")


def seen(prompt: tuple[int, ...], answer: tuple[int, ...], vocabulary: int = 6) -> Seen:
    """What was said so far."""
    found = Seen(prompt, vocabulary, CPU)
    for token in answer:
        found.add(token)
    return found


def test_repetition_is_that_of_transformers() -> None:
    logits_BV = torch.tensor([[1.0, -1.0, 2.0, 0.5, -3.0, 0.0]])
    expected_BV = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[0, 1, 4, 2]]), logits_BV.clone())
    found_BV = penalised(logits_BV, [Sampling(repetition_penalty=1.3)], [seen((0, 1), (4, 2))])
    torch.testing.assert_close(found_BV, expected_BV)


def test_frequency_counts_and_presence_does_not() -> None:
    logits_BV = torch.zeros(1, 6)
    sampling = Sampling(frequency_penalty=0.5, presence_penalty=0.25)
    found_BV = penalised(logits_BV, [sampling], [seen((5,), (1, 1, 2))])
    assert found_BV.tolist() == [[0.0, -1.25, -0.75, 0.0, 0.0, 0.0]]


def test_biases_are_added_at_their_tokens() -> None:
    logits_BV = torch.zeros(2, 4)
    add_biases(logits_BV, [Sampling(), Sampling(logit_bias={2: 1.5, "3": -2.0})])
    assert logits_BV.tolist() == [[0.0] * 4, [0.0, 0.0, 1.5, -2.0]]


def test_a_row_is_penalised_alone(tiny_decoder: type) -> None:
    model = tiny_decoder(stop_ids=())
    plain = Request((1, 2), Sampling(max_new_tokens=12))
    barred = Request((1, 2), Sampling(max_new_tokens=12, presence_penalty=2.0, frequency_penalty=2.0))
    biased = Request((1, 2), Sampling(max_new_tokens=12, logit_bias={77: 1e4}))
    apart = [generate(model, [request])[0] for request in (plain, barred, biased)]
    assert generate(model, [plain, barred, biased, plain]) == [*apart, apart[0]]
    assert apart[2].tokens == (77,) * 12
    assert apart[0] != apart[1]


def test_two_constraints_are_refused_and_probabilities_are_kept_by_default() -> None:
    with pytest.raises(ValidationError, match="leave one of them out"):
        Sampling(regex="a", json_schema="{}")
    assert Sampling(temperature=0.5, top_p=0.9).keeps_probabilities
    assert not Sampling(presence_penalty=0.1).keeps_probabilities
    assert not Sampling(logit_bias={1: 1.0}).keeps_probabilities
    assert not Sampling(regex="a").keeps_probabilities


def test_a_bias_beyond_the_vocabulary_is_refused(tiny_decoder: type) -> None:
    from luthier.errors import UsageError

    with pytest.raises(UsageError, match="257"):
        generate(tiny_decoder(), [Request((1,), Sampling(logit_bias={257: 1.0}))])
