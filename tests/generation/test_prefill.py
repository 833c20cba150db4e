"""Prompts side by side in one row: each piece where it belongs, what they share once, and the same answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import tiny_model
from near import assert_near
from transformers import DynamicCache

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.generation.cache import BLOCK, GrowingCache, PackedKeys
from luthier.generation.engine import Request, generate
from luthier.generation.prefill import groups_within, pack_prompts
from luthier.generation.rows import PromptRows
from luthier.generation.settings import Sampling
from luthier.objectives.pretraining import continued
from luthier.types import Example, Origin, Part

prompts_of = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(system=st.integers(0, 14), rests=prompts_of)
def test_each_prompt_can_be_read_off_its_segments(system: int, rests: list[list[int]]) -> None:
    prompts = [[9] * system + rest for rest in rests]
    packed = pack_prompts(prompts)
    tokens, positions = packed.tokens_1T[0], packed.positions_1T[0]
    for prompt, segments, last in zip(prompts, packed.segments_of, packed.last_B.tolist(), strict=True):
        assert torch.cat([tokens[s.start : s.end] for s in segments]).tolist() == prompt
        assert torch.cat([positions[s.start : s.end] for s in segments]).tolist() == list(range(len(prompt)))
        assert last == segments[-1].end - 1
    assert sum(segment.length for segment in packed.segments) == len(tokens)


def test_a_long_beginning_in_common_is_computed_once() -> None:
    packed = pack_prompts([[*range(20), 1], [*range(20), 2, 3], [*range(20)]])
    assert packed.tokens_1T.numel() == 19 + 2 + 3 + 1  # each prompt keeps a last token of its own


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), budget=st.integers(1, 40))
def test_groups_are_neighbours_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = groups_within(lengths, budget)
    assert [index for group in groups for index in group] == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= budget or len(group) == 1 for group in groups)


def test_the_cache_of_packed_prompts_goes_on_like_one_of_prompts_alone() -> None:
    model = tiny_model("llama")
    prompts = [[*range(3, 13), 20, 21], [*range(3, 13), 22], [*range(3, 13), 23, 24, 25, 26]]
    packed = pack_prompts(prompts)
    keys = DynamicCache()
    first_BV = model.prefill(packed.tokens_1T, packed.positions_1T, packed.segments, packed.last_B, keys)
    cache = GrowingCache()
    cache.fill([PackedKeys(keys, packed.segments_of)])
    lengths_B = torch.tensor([len(prompt) for prompt in prompts])
    mask_BL = torch.arange(15) >= 14 - lengths_B[:, None]
    next_B1 = torch.tensor([[30], [31], [32]])
    second_BV = model.decode(next_B1, lengths_B[:, None], mask_BL, cache)
    for row, prompt in enumerate(prompts):
        whole = torch.tensor([[*prompt, 30 + row]])
        alone_1TV = model.hf(input_ids=whole).logits
        assert_near(first_BV[row], alone_1TV[0, -2])
        assert_near(second_BV[row], alone_1TV[0, -1])


def test_a_cache_grows_past_its_blocks_and_forgets_rows() -> None:
    cache, plain = GrowingCache(), DynamicCache()
    keys = torch.randn(3, 2, 2 * BLOCK + 5, 4)
    for start, stop in ((0, 5), (5, 6), (6, BLOCK + 7), (BLOCK + 7, 2 * BLOCK + 5)):
        for held in (cache, plain):
            held.update(keys[:, :, start:stop], -keys[:, :, start:stop], 0)
        if stop == 6:
            keep = torch.tensor([2, 0])
            keys = keys[keep]
            cache.batch_select_indices(keep)
            plain.batch_select_indices(keep)
        assert torch.equal(cache.layers[0].keys, plain.layers[0].keys)
        assert torch.equal(cache.layers[0].values, plain.layers[0].values)
        assert cache.get_seq_length() == stop


def test_threads_share_the_requests_and_answer_them_alike() -> None:
    model = tiny_model("llama")
    requests = [Request(tuple(range(3, 5 + number)), Sampling(max_new_tokens=9)) for number in range(7)]
    threads = torch.get_num_threads()
    told: list[tuple[int, int]] = []
    try:
        torch.set_num_threads(3)
        many = generate(model, requests, progress=lambda done, total: told.append((done, total)))
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        assert many == generate(model, requests)
    finally:
        torch.set_num_threads(threads)
    assert told == [(done, 7) for done in range(1, 8)]


# ── prompts that are read in both directions ────────────────────────────────────────────────────────────────────────

ASKED = [([*range(3, 16)], [20, 21, 22, 2]), ([*range(3, 13), 40], [30]), ([7], [8, 9, 10])]


def taught(prompt: list[int], answer: list[int]) -> Example:
    """A prompt and its answer as prefix language modelling learns them."""
    none = np.zeros(0, dtype=np.int64)
    text = Example((Part(none),), none, none, np.zeros(0, dtype=np.float32), none, 0, Origin("rows.txt", 1))
    return continued(text, np.array(prompt, dtype=np.int64), np.array(answer, dtype=np.int64))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_an_answer_to_a_prompt_read_both_ways_is_as_likely_as_in_training(name: str) -> None:
    model = tiny_model(name)
    prompts, answers = zip(*ASKED, strict=True)
    rows = PromptRows(model, [tuple(prompt) for prompt in prompts], None, causal=False)
    longest = max(map(len, answers))
    padded_BT = torch.tensor([answer + [0] * (longest - len(answer)) for answer in answers])
    scores_BV = [rows.first_scores(), *(rows.next_scores(token_B) for token_B in padded_BT.T[:-1])]
    logprob_BT = torch.stack(scores_BV, dim=1).log_softmax(-1).gather(-1, padded_BT[..., None])[..., 0]
    for row, (prompt, answer) in enumerate(ASKED):
        batch = collate([taught(prompt, answer)], model.layout, model.pad_id)
        expected_T = model.forward(batch).logprob_N.detach()
        torch.testing.assert_close(logprob_BT[row, : len(answer)], expected_T, rtol=0, atol=1e-4)
    left_to_right = PromptRows(model, [tuple(prompt) for prompt in prompts], None).first_scores()
    assert (left_to_right - scores_BV[0]).abs()[:2].amax() > 1e-2, "it matters how a prompt is read"


def test_nothing_is_shared_of_prompts_read_both_ways_and_they_are_batched_apart() -> None:
    prompts = [[*range(20), 1], [*range(20), 2, 3]]
    packed = pack_prompts(prompts, causal=False)
    assert packed.tokens_1T.numel() == 43
    assert [(segment.parent, segment.causal) for segment in packed.segments] == [(None, False)] * 2
    model = tiny_model("llama")
    requests = [Request(tuple(range(3, 15)), Sampling(max_new_tokens=5), causal=causal) for causal in (True, False)]
    assert generate(model, requests) == [generate(model, [request])[0] for request in requests]


def test_a_family_that_cannot_be_packed_cannot_read_both_ways() -> None:
    with pytest.raises(RecipeError, match="in both directions"):
        generate(tiny_model("falcon"), [Request((3, 4), Sampling(max_new_tokens=2), causal=False)])
