import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from luthier.errors import NotFinite
from luthier.generation.sampling import sample, uniforms
from luthier.generation.settings import Sampling

GRID = 4000


def shares(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """How often each token comes out when the uniform numbers are an even grid: its probability to within 1 / GRID."""
    grid = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    tokens = sample(logits_V.expand(GRID, -1), [sampling] * GRID, grid)
    return torch.bincount(tokens, minlength=len(logits_V)).double() / GRID


def warped(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution that transformers would draw from."""
    scores = TemperatureLogitsWarper(sampling.temperature)(None, logits_V[None])
    if sampling.top_k is not None:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p > 0:
        scores = MinPLogitsWarper(sampling.min_p)(None, scores)
    return scores.softmax(-1)[0].double()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6),
        Sampling(temperature=1.0, top_k=3),
        Sampling(temperature=1.0, top_k=300),
        Sampling(temperature=1.3, top_p=0.7),
        Sampling(temperature=1.0, min_p=0.1),
        Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02),
        Sampling(temperature=1.0, top_k=10_000),
    ],
)
@pytest.mark.parametrize("vocabulary", [5, 256, 300, 700])
def test_draws_follow_the_distribution_that_transformers_defines(sampling, vocabulary):
    logits_V = torch.randn(vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
    torch.testing.assert_close(shares(logits_V, sampling), warped(logits_V, sampling), rtol=0, atol=1.01 / GRID)


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0, top_p=0.95), Sampling(temperature=1.0, min_p=1e-3)])
@pytest.mark.parametrize("vocabulary", [1000, 5000])
def test_limits_beyond_the_first_candidates_are_exact(sampling, vocabulary):
    logits_V = torch.randn(vocabulary, generator=torch.Generator().manual_seed(3)) * 0.1  # flat: 256 tokens hold little
    kept = warped(logits_V, sampling) > 0
    assert int(kept.sum()) > 0.8 * vocabulary
    drawn = shares(logits_V, sampling)
    assert not bool(drawn[~kept].any())
    torch.testing.assert_close(drawn, warped(logits_V, sampling), rtol=0, atol=1.01 / GRID)


def test_temperature_zero_takes_the_likeliest_token():
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    tokens = sample(logits_BV, [Sampling(temperature=0)] * 6, torch.rand(6, dtype=torch.float64))
    assert torch.equal(tokens, logits_BV.argmax(-1))


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=1e-30), Sampling(temperature=1.0, top_k=1), Sampling(temperature=5.0, top_p=1e-9)]
)
def test_the_narrowest_settings_are_greedy(sampling):
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 100
    tokens = sample(logits_BV, [sampling] * 6, torch.full((6,), 0.999, dtype=torch.float64))
    assert torch.equal(tokens, logits_BV.argmax(-1))


def test_a_token_of_no_probability_is_never_drawn_even_at_the_ends_of_the_interval():
    logits_V = torch.full((300,), float("-inf"))
    logits_V[[7, 290]] = 0.0
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for sampling in (
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_p=0.999999),
        Sampling(temperature=1.0, top_k=100),
    ):
        drawn = sample(logits_V.expand(2, -1), [sampling] * 2, ends)
        assert sorted(drawn.tolist()) == [7, 290]


def test_each_row_follows_its_own_settings_whatever_its_neighbours_ask():
    logits_BV = torch.randn(4, 400, generator=torch.Generator().manual_seed(2))
    settings = [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=300),
        Sampling(temperature=1.0, top_p=0.5),
    ]
    uniform_B = uniforms([5, 6, 7, 8], [0, 1, 2, 3])
    together = sample(logits_BV, settings, uniform_B)
    alone = [sample(logits_BV[i : i + 1], [settings[i]], uniform_B[i : i + 1])[0] for i in range(4)]
    assert together.tolist() == [int(token) for token in alone]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_not_finite_are_refused(bad, temperature):
    logits_BV = torch.zeros(3, 10)
    logits_BV[1, 4] = bad
    with pytest.raises(NotFinite, match="not finite"):
        sample(logits_BV, [Sampling(temperature=temperature)] * 3, torch.zeros(3, dtype=torch.float64))


def test_a_row_that_excludes_every_token_is_refused():
    with pytest.raises(NotFinite):
        sample(torch.full((1, 10), float("-inf")), [Sampling()], torch.zeros(1, dtype=torch.float64))


def test_uniform_numbers_are_even_and_differ_by_seed_and_token():
    by_token = uniforms([1] * 20_000, list(range(20_000)))
    by_seed = uniforms(list(range(20_000)), [1] * 20_000)
    for numbers in (by_token, by_seed):
        assert bool(((numbers >= 0) & (numbers < 1)).all())
        assert len(set(numbers.tolist())) == 20_000
        counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 50  # chi-square, 19 degrees: passed once in 10,000
        pairs = torch.stack([numbers[:-1], numbers[1:]])
        assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.03
    assert uniforms([3], [4]).item() == uniforms([9, 3], [9, 4])[1].item()
