"""The probes of safety and bias: their own texts, what counts as a refusal, and what they find of tiny models."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from models.tiny import tiny_model
from models.tuned import randomize

from luthier.data.rendering import build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import ResourceError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.safety.probe import (
    FOLDER,
    STEREOTYPES,
    Probes,
    is_refusal,
    is_rude,
    probe_safety,
    read_probes,
)
from luthier.generation.requests import Completed, Request
from luthier.methods import LoRA
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, silent
from luthier.prediction.text_model import TextModel

PROBES = read_probes()


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.", "I cannot provide instructions for this.", "No. I won't do that.",
        "Sorry, I am not able to do this.", "That would be illegal, so no.", "I apologize, but I must decline.",
        "I’m not comfortable with this request.",
    ],
)  # fmt: skip
def test_a_refusal_is_told_by_its_beginning(answer: str) -> None:
    assert is_refusal(answer)
    assert not is_refusal("Here is how it is done. " * 20 + answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Of course! First put the keys into the vice.", "I'm sorry to hear that you forgot it. Here is what to do.", "",
        "You can do this in three steps.", "The brakes should be checked once a year; you can't see their wear from outside.",
    ],
)  # fmt: skip
def test_an_answer_that_helps_is_no_refusal(answer: str) -> None:
    assert not is_refusal(answer)


def test_rude_words_are_found_as_whole_words() -> None:
    assert is_rude("You are an IDIOT!", PROBES.rude)
    assert not is_rude("Hello, the class assembled its shells and hellebores.", PROBES.rude)


def test_the_texts_are_many_and_no_two_are_the_same() -> None:
    assert len(set(PROBES.harmful)) == len(PROBES.harmful) == len(set(PROBES.innocent)) == len(PROBES.innocent)
    assert 30 <= len(PROBES.harmful) <= 60
    assert 30 <= len(PROBES.pairs) <= 60
    assert not any(is_rude(text, PROBES.rude) for text in (*PROBES.harmful, *PROBES.innocent))


def test_pairs_of_stereotypes_differ_in_one_word_and_swap_it_the_other_way_as_often() -> None:
    """So that a model that only finds one of the words likelier comes to one half."""
    swaps = Counter()
    for row in map(json.loads, (FOLDER / STEREOTYPES).read_text("utf-8").splitlines()):
        one, other = row["stereotype"].split(), row["other"].split()
        (changed,) = [pair for pair in zip(one, other, strict=True) if pair[0] != pair[1]]
        swaps[changed] += 1
    assert all(count == swaps[other, one] for (one, other), count in swaps.items())


def few(**changes: object) -> Probes:
    """Short ones for models with room for little."""
    pairs = tuple((f"w{number} w5 w9", f"w{number} w6 w9") for number in range(10, 20))
    usual = {"harmful": ("w3 w4", "w4 w5"), "innocent": ("w5 w6",), "pairs": pairs, "rude": PROBES.rude}
    return Probes(**{**usual, **changes})  # type: ignore[arg-type]


def test_a_model_and_the_same_with_an_adapter_are_compared_by_every_probe() -> None:
    model = tiny_model("llama")
    attachment = LoRA(rank=2).attach(model, "default", 0)
    settings = DataSettings(train="none.jsonl", validation="none")
    renderer = build_renderer(settings, model.tokenizer, model.anatomy.family.pooled, model.answer_start)
    tuned = TextModel(model, renderer, "default")
    candidates = [Candidate("base", model), Candidate("tuned", model, "default")]
    asked: list[tuple[list[str], list[bool]]] = []

    def score(prompts: object, requests: object, answers: object) -> list[float | None]:
        assert isinstance(prompts, list)
        assert isinstance(requests, list)
        assert isinstance(answers, list)
        asked.append(
            (
                prompts,
                [isinstance(r, Request) and isinstance(a, Completed) for r, a in zip(requests, answers, strict=True)],
            )
        )
        return [None, *map(float, range(len(prompts) - 1))]

    with Workers(1) as pool:
        passes = Passes(pool, 256, silent)
        same = probe_safety(candidates, tuned, passes, few(), {"kindness": score})
        randomize(attachment)
        other = probe_safety(candidates, tuned, passes, few(), {})
    rows = {part.name: part.num_rows for part in same.parts}
    assert rows == {
        "harmful requests refused": 2, "innocent requests refused": 1, "answers with rude words": 3,
        "kindness, of these answers": 2, "stereotypes likelier": 10,
    }  # fmt: skip
    assert all(part.comparisons[0].difference.value == 0 for part in same.parts if part.comparisons[0].difference)
    assert asked[0][0] == ["w3 w4", "w4 w5", "w5 w6"]
    stereotypes = other.parts[-1]
    assert stereotypes.comparisons[0].rises + stereotypes.comparisons[0].falls > 0
    assert not same.said(("base", "tuned"))


def test_the_bound_of_memory_holds_for_the_probe_too() -> None:
    model = tiny_model("llama")
    settings = DataSettings(train="none.jsonl", validation="none")
    renderer = build_renderer(settings, model.tokenizer, model.anatomy.family.pooled, model.answer_start)
    candidates, tuned = [Candidate("base", model)], TextModel(model, renderer, None)
    with Workers(1) as pool:
        passes = Passes(pool, 256, silent, cache_bytes=1)
        with pytest.raises(ResourceError, match="cache"):
            probe_safety(candidates, tuned, passes, few(), {})
