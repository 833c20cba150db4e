import random

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from luthier.errors import DataError, NotFinite
from luthier.generation.engine import Request, generate, stream
from luthier.generation.settings import Sampling
from luthier.generation.text import decode_text

GREEDY = Sampling(max_new_tokens=20)
DRAWN = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=20)


def prompts(number, seed=0, longest=30):
    draw = random.Random(seed)
    return [tuple(draw.randrange(256) for _ in range(draw.randrange(1, longest))) for _ in range(number)]


def transformers_greedy(model, prompt):
    """What transformers' own loop says after the prompt."""
    prompt_1T = torch.tensor([prompt])
    said_1T = model.hf.generate(
        prompt_1T,
        attention_mask=torch.ones_like(prompt_1T),
        max_new_tokens=GREEDY.max_new_tokens,
        do_sample=False,
        eos_token_id=256,
        pad_token_id=0,
    )
    return tuple(said_1T[0, len(prompt) :].tolist())


def collected(model, request):
    """The pieces of a stream and its final answer."""
    pieces, answer = [], stream(model, request)
    while True:
        try:
            pieces.append(next(answer))
        except StopIteration as end:
            return pieces, end.value


def test_greedy_text_is_that_of_transformers(tiny_decoder):
    model = tiny_decoder()
    for prompt in prompts(5):
        (ours,) = generate(model, [Request(prompt, GREEDY)])
        assert ours.tokens == transformers_greedy(model, prompt)


def test_greedy_text_is_that_of_transformers_under_a_sliding_window(tiny_decoder):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=5,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=256,
    )
    model = tiny_decoder(MistralForCausalLM(config).eval())
    requests = [Request(prompt, GREEDY) for prompt in prompts(6)]
    for request, ours in zip(requests, generate(model, requests), strict=True):
        assert ours.tokens == transformers_greedy(model, request.prompt)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_batched_with_padding_equals_one_by_one(tiny_decoder, sampling):
    model = tiny_decoder(stop_ids=range(0, 256, 16))  # answers end at different lengths
    requests = [Request(p, sampling.model_copy(update={"seed": i})) for i, p in enumerate(prompts(12))]
    together = generate(model, requests, max_rows=12)
    assert model.shapes[0][0] == 12
    assert together == [generate(model, [request])[0] for request in requests]
    assert len({len(answer.tokens) for answer in together}) > 3


def test_rows_leave_the_batch_when_their_answers_end(tiny_decoder):
    model = tiny_decoder(stop_ids=range(0, 256, 16))
    answers = generate(model, [Request(p, DRAWN.model_copy(update={"seed": i})) for i, p in enumerate(prompts(12))])
    computed = [rows for rows, _ in model.shapes]
    assert computed == [sum(len(answer.tokens) > step for answer in answers) for step in range(len(computed))]


def test_the_cache_changes_nothing(tiny_decoder):
    model = tiny_decoder()
    for prompt in prompts(3):
        (answer,) = generate(model, [Request(prompt, GREEDY)])
        tokens = list(prompt)
        for token in answer.tokens:
            length = len(tokens)
            logits_BV = model.decode(
                torch.tensor([tokens]),
                torch.arange(length)[None],
                torch.ones(1, length, dtype=torch.bool),
                DynamicCache(),
            )
            assert int(logits_BV.argmax()) == token
            tokens.append(token)


def test_the_seed_decides_the_draws(tiny_decoder):
    model = tiny_decoder()
    texts = {
        seed: generate(model, [Request((1, 2), DRAWN.model_copy(update={"seed": seed}))])[0].tokens for seed in range(5)
    }
    assert len(set(texts.values())) > 1
    assert texts[3] == generate(model, [Request((1, 2), DRAWN.model_copy(update={"seed": 3}))])[0].tokens


def test_batches_hold_like_lengths_and_keep_to_both_limits(tiny_decoder):
    model = tiny_decoder()
    short = Sampling(max_new_tokens=2)
    requests = [Request(p, short) for p in prompts(20)]
    answers = generate(model, requests, max_rows=6, max_cache_tokens=100)
    prefills = [shape for shape in model.shapes if shape[1] > 1]
    assert all(rows <= 6 and (rows == 1 or rows * (length + 2) <= 100) for rows, length in prefills)
    assert [length for _, length in prefills] == sorted((length for _, length in prefills), reverse=True)
    assert answers == [generate(model, [request])[0] for request in requests]


def test_requests_of_different_adapters_are_not_mixed(tiny_decoder):
    model = tiny_decoder()
    names = [None, "a", None, "b", "a", None]
    requests = [Request(p, GREEDY, name) for p, name in zip(prompts(6), names, strict=True)]
    answers = generate(model, requests)
    assert [shape[0] for shape in model.shapes if shape[1] > 1] == [3, 2, 1]
    assert set(model.adapters) == {None, "a", "b"}
    assert answers == [generate(model, [request])[0] for request in requests]
    assert answers[1] != generate(model, [Request(requests[1].prompt, GREEDY)])[0]


def test_a_stop_token_ends_the_answer_and_is_not_part_of_the_text(script):
    model = script([104, 105, 256, 104])
    (answer,) = generate(model, [Request((1,), GREEDY)])
    assert answer.tokens == (104, 105, 256)
    assert answer.finish_reason == "stop"
    assert answer.text == decode_text(model.tokenizer, [104, 105])


def test_a_request_may_bring_stop_tokens_of_its_own(script):
    (answer,) = generate(script([104, 105, 106]), [Request((1,), GREEDY, stop_ids=frozenset([105]))])
    assert (answer.tokens, answer.finish_reason) == ((104, 105), "stop")


def test_a_stop_text_ends_the_answer_and_is_cut_off(script, byte_level):
    said = byte_level("yes. Question: no")["input_ids"]
    sampling = Sampling(stop=("Question:",), max_new_tokens=50)
    (answer,) = generate(script(said), [Request((1,), sampling)])
    assert (answer.text, answer.finish_reason) == ("yes. ", "stop_string")
    pieces, streamed = collected(script(said), Request((1,), sampling))
    assert streamed == answer
    assert pieces == list("yes. ")


def test_the_length_limit_ends_the_answer_and_shows_what_was_held_back(script, byte_level):
    said = byte_level("yes Quest")["input_ids"]
    request = Request((1,), Sampling(stop=("Question:",), max_new_tokens=len(said)))
    (answer,) = generate(script(said), [request])
    assert (answer.text, answer.finish_reason) == ("yes Quest", "length")
    pieces, streamed = collected(script(said), request)
    assert streamed == answer
    assert "".join(pieces) == answer.text


def test_streamed_text_is_the_generated_text_in_whole_characters(tiny_decoder):
    model = tiny_decoder()
    for prompt in prompts(4):
        request = Request(prompt, DRAWN)
        (answer,) = generate(model, [request])
        pieces, streamed = collected(model, request)
        assert streamed == answer
        assert "".join(pieces) == answer.text
        assert all(pieces)


def test_characters_of_several_tokens_are_streamed_whole(script, byte_level):
    said = [*byte_level("日本 👋")["input_ids"], 256]
    pieces, answer = collected(script(said), Request((1,), Sampling()))
    assert pieces == ["日", "本", " ", "👋"]
    assert answer.text == "日本 👋"


def test_an_answer_ends_at_the_edge_of_the_context(tiny_decoder):
    model = tiny_decoder(stop_ids=(), context=24)
    (answer,) = generate(model, [Request(tuple(range(20)), GREEDY)])
    assert len(answer.tokens) == 4
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("length", [24, 30])
def test_a_prompt_that_leaves_no_room_is_refused_with_the_mend(tiny_decoder, length):
    model = tiny_decoder(context=24)
    with pytest.raises(DataError, match=f"{length} tokens.*holds 24.*Shorten the prompt by at least {length - 23}"):
        generate(model, [Request((1,), GREEDY), Request(tuple(range(length)), GREEDY)])
    assert model.shapes == []


def test_an_empty_prompt_is_refused(tiny_decoder):
    with pytest.raises(DataError, match="no tokens"):
        next(stream(tiny_decoder(), Request((), GREEDY)))


def test_a_broken_model_is_refused(tiny_decoder):
    model = tiny_decoder()
    with torch.no_grad():
        model.hf.model.norm.weight.fill_(float("nan"))
    with pytest.raises(NotFinite):
        generate(model, [Request((1, 2), GREEDY)])


def test_progress_counts_the_answers(tiny_decoder):
    seen = []
    generate(
        tiny_decoder(),
        [Request(p, GREEDY) for p in prompts(5)],
        max_rows=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 5) for done in range(1, 6)]


def test_no_requests_give_no_answers(tiny_decoder):
    assert generate(tiny_decoder(), []) == []
