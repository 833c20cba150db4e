"""The split depends on prompts alone."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.split import Keys, num_held_out, pieces_apart, prompt_key, split_keys, split_rows, text_key
from luthier.types import Completion, Conversation, Message, PlainText

FRACTIONS = st.floats(0.001, 0.2)
# few different prompts, so that many rows share one
PROMPTS = st.lists(st.integers(0, 60), max_size=400)


def asking(prompts: list[int]) -> list[Completion]:
    """A row for each prompt, no two with the same answer."""
    return [Completion(f"question {prompt}", f"answer {index}") for index, prompt in enumerate(prompts)]


@given(PROMPTS, FRACTIONS)
def test_every_row_is_on_one_side_and_no_prompt_on_both(prompts, fraction):
    train, held_out = split_rows(asking(prompts), fraction)
    assert sorted(train + held_out) == list(range(len(prompts)))
    assert train == sorted(train)
    assert held_out == sorted(held_out)
    assert not {prompts[i] for i in train} & {prompts[i] for i in held_out}


@given(PROMPTS, FRACTIONS)
def test_no_more_is_held_out_than_the_fraction_or_16_nor_than_500_or_a_fifth(prompts, fraction):
    _, held_out = split_rows(asking(prompts), fraction)
    assert len(held_out) <= max(16, round(fraction * len(prompts)))
    assert len(held_out) <= min(500, len(prompts) / 5)


@given(st.integers(0, 600), FRACTIONS)
def test_where_all_prompts_differ_exactly_the_number_wished_is_held_out(num_rows, fraction):
    _, held_out = split_rows(asking(list(range(num_rows))), fraction)
    assert len(held_out) == num_held_out(num_rows, fraction)


@given(PROMPTS, FRACTIONS, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(prompts, fraction, randomness):
    shuffled = list(prompts)
    randomness.shuffle(shuffled)
    sides = [{order[i] for i in split_rows(asking(order), fraction)[1]} for order in (prompts, shuffled)]
    assert sides[0] == sides[1]


@given(PROMPTS, FRACTIONS)
def test_the_answers_do_not_matter(prompts, fraction):
    records = asking(prompts)
    others = [replace(record, completion="something else") for record in records]
    assert split_rows(records, fraction) == split_rows(others, fraction)


@given(st.integers(0, 300), st.integers(0, 300), FRACTIONS)
def test_new_prompts_take_a_held_out_row_back_only_by_being_held_out_in_its_place(num_old, num_new, fraction):
    _, before = split_rows(asking(list(range(num_old))), fraction)
    _, after = split_rows(asking(list(range(num_old + num_new))), fraction)
    taken_back = set(before) - set(after)
    assert len(taken_back) <= sum(index >= num_old for index in after)


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [(0, 0), (4, 0), (5, 1), (50, 10), (79, 15), (80, 16), (320, 16), (400, 20), (10_000, 500), (10**6, 500)],
)
def test_a_twentieth_is_held_out_within_the_bounds(num_rows, expected):
    assert num_held_out(num_rows, 0.05) == expected


def test_a_prompt_that_does_not_fit_is_passed_over_and_the_rest_still_fills_up():
    prompts = [0] * 60 + list(range(1, 41))
    random.Random(3).shuffle(prompts)
    train, held_out = split_rows(asking(prompts), 0.1)
    assert len(held_out) == 16
    assert sum(prompts[i] == 0 for i in train) == 60


# ── the key ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def talk(*messages: tuple[str, str], tools: tuple[dict[str, object], ...] = ()) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in messages), tools)


def test_the_key_is_of_all_before_the_last_answer():
    key = prompt_key(talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert key == prompt_key(talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "other")))
    assert key != prompt_key(talk(("user", "a"), ("assistant", "other"), ("user", "c"), ("assistant", "d")))
    assert key != prompt_key(talk(("user", "a"), ("assistant", "d")))


@pytest.mark.parametrize(
    "other",
    [
        talk(("system", "a"), ("assistant", "b")),
        talk(("user", "a "), ("assistant", "b")),
        talk(("user", "a"), ("assistant", "b"), tools=({"name": "f"},)),
        Conversation((Message("user", "a", None, (("name", "ann"),)), Message("assistant", "b"))),
    ],
)
def test_whatever_the_model_sees_before_the_answer_is_in_the_key(other):
    assert prompt_key(other) != prompt_key(talk(("user", "a"), ("assistant", "b")))


def test_the_weight_of_an_answer_is_not_in_the_key():
    asked = Message("user", "a")
    answers = [Message("assistant", "b", learn) for learn in (None, True, False)]
    keys = {prompt_key(Conversation((asked, answer, asked, answer))) for answer in answers}
    assert len(keys) == 1


def test_plain_text_is_keyed_by_the_whole_of_it():
    assert prompt_key(PlainText("a")) == prompt_key(PlainText("a")) != prompt_key(PlainText("a b"))


def test_a_piece_is_keyed_by_the_text_that_it_is_of():
    assert prompt_key(PlainText("a", part_of=text_key("a b"))) == text_key("a b") == prompt_key(PlainText("a b"))


# ── pieces of texts ─────────────────────────────────────────────────────────────────────────────────────────────────


def keys_of(texts: list[int]) -> Keys:
    """The keys of pieces, given which text each is of."""
    return np.array([text_key(f"text {text}").encode() for text in texts], dtype="S64")


@given(st.lists(st.integers(1, 15), min_size=2, max_size=60), FRACTIONS)
def test_pieces_of_a_text_that_can_be_held_out_whole_are_on_one_side(counts, fraction):
    of_text = [text for text, count in enumerate(counts) for _ in range(count)]
    keys_R, size = keys_of(of_text), (len(of_text),)
    apart_R, num_apart = pieces_apart(keys_R, np.ones(len(of_text), dtype=np.bool_), fraction, size)
    train, held_out = split_keys(apart_R, fraction, size)
    room = num_held_out(len(of_text), fraction)
    long = {text for text, count in enumerate(counts) if count > room}
    assert num_apart == len(long)
    assert {of_text[i] for i in train} & {of_text[i] for i in held_out} <= long
    assert len(held_out) <= room


def test_of_a_text_that_is_all_there_is_pieces_are_held_out_one_by_one():
    keys_R = keys_of([0] * 100)
    assert split_keys(keys_R, 0.05, (100,))[1] == []
    apart_R, num_apart = pieces_apart(keys_R, np.ones(100, dtype=np.bool_), 0.05, (100,))
    assert (num_apart, len(split_keys(apart_R, 0.05, (100,))[1])) == (1, 16)


def test_prompts_that_repeat_often_stay_together_for_they_are_no_pieces():
    keys_R = keys_of([0] * 100)
    apart_R, num_apart = pieces_apart(keys_R, np.zeros(100, dtype=np.bool_), 0.05, (100,))
    assert num_apart == 0
    assert (apart_R == keys_R).all()


def test_each_source_is_judged_by_its_own_rows():
    keys_R, is_piece_R = keys_of([0] * 20 + [1] * 20 + list(range(2, 382))), np.ones(420, dtype=np.bool_)
    alone, num_alone = pieces_apart(keys_R, is_piece_R, 0.05, (20, 400))
    assert num_alone == 1, "of 20 rows 4 are held out, of 400 rows 20"
    assert (alone[20:] == keys_R[20:]).all()
    assert len(set(alone[:20].tolist())) == 20


def test_the_key_is_the_same_in_every_process_and_version():
    assert prompt_key(Completion("question", "answer")) == KEY_OF_QUESTION


KEY_OF_QUESTION = "6d6ca52ed3519c9caf99237c1b77d7a63cca5a5ef32b7131d6fe85a86f91a979"
