"""Prompts side by side in one row: each piece where it belongs, what they share once, and the same answers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import tiny_model
from near import assert_near
from transformers import DynamicCache

from luthier.generation.cache import BLOCK, GrowingCache, PackedKeys
from luthier.generation.engine import Request, generate
from luthier.generation.prefill import groups_within, pack_prompts
from luthier.generation.settings import Sampling

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
