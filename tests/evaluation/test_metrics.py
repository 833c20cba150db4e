import itertools
import json
import math
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from luthier.evaluation.metrics import (
    common_length,
    exact_match,
    field_accuracy,
    json_object,
    matching_fields,
    perplexity,
    rouge_l,
    rouge_words,
    squad_words,
    token_f1,
)

WORDS = [
    "The",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "it's",
    "well-known",
    "3.14",
    "snake_case",
    "END.",
    "the",
    "(sic)",
    "\n",
]


def random_text(draw):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(0, 30)))


def test_rouge_l_equals_that_of_the_rouge_score_package():
    draw = random.Random(0)
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    for _ in range(300):
        answer, reference = random_text(draw), random_text(draw)
        assert rouge_l(answer, reference) == pytest.approx(scorer.score(reference, answer)["rougeL"].fmeasure, abs=1e-9)


def test_common_length_is_that_of_the_longest_shared_subsequence():
    draw = random.Random(1)
    for _ in range(100):
        left = [draw.choice("abc") for _ in range(draw.randrange(0, 8))]
        right = [draw.choice("abc") for _ in range(draw.randrange(0, 8))]
        shared = [
            length
            for length in range(len(left) + 1)
            for chosen in itertools.combinations(left, length)
            if any(chosen == other for other in itertools.combinations(right, length))
        ]
        assert common_length(left, right) == max(shared)


def test_common_length_of_long_texts_is_right():
    words = [str(i) for i in range(5000)]
    assert common_length(words, words) == 5000
    assert common_length(words, words[::-1]) == 1
    assert common_length(words[::2], words) == 2500


def test_words_of_every_script_count():
    assert rouge_words("Crème brûlée, 2 кота") == ["crème", "brûlée", "2", "кота"]
    assert rouge_words("我喜欢GPU卡") == ["我", "喜", "欢", "gpu", "卡"]
    assert rouge_l("我喜欢猫", "我喜欢狗") == pytest.approx(0.75)
    assert rouge_l("cafe\u0301", "caf\u00e9") == 1
    assert token_f1("我喜欢猫。", "我喜欢狗") == pytest.approx(0.75)


def test_exact_match_forgives_white_space_at_the_ends_only():
    assert exact_match(" yes\n", "yes") == 1
    assert exact_match("Yes", "yes") == 0
    assert exact_match("y es", "yes") == 0
    assert exact_match("", "  ") == 1


def test_token_f1_compares_words_as_squad_does():
    assert squad_words("The U.S.A., an  “old” state-of-the-art a") == ["usa", "old", "stateoftheart"]
    assert token_f1("the cat!", "A cat") == 1
    assert token_f1("cat cat dog", "cat bird") == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert token_f1("dog", "cat") == 0


def test_token_f1_without_words_agrees_only_with_no_words():
    assert token_f1("", "the .") == 1
    assert token_f1("cat", "") == 0
    assert token_f1("", "cat") == 0


def test_scores_are_symmetric_and_lie_between_0_and_1():
    draw = random.Random(2)
    for _ in range(100):
        left, right = random_text(draw), random_text(draw)
        for score in (exact_match, token_f1, rouge_l):
            assert 0 <= score(left, right) <= 1
            assert score(left, right) == pytest.approx(score(right, left))
        assert token_f1(left, left) == 1


def test_perplexity_is_the_exponential_of_the_mean_loss():
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(0.0) == 1
    assert perplexity(1e4) == math.inf


@pytest.mark.parametrize(
    "text",
    [
        "", "nothing", "[1, 2]", '"text"', "{'a': 1}", '{"a": 1} done', '```json\n{"a": 1}\n```', '{"a": NaN}',
        '{"a": Infinity}', '{"a": 1,}', '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_what_is_not_a_json_object_as_a_whole_is_not_one(text):
    assert json_object(text) is None


def test_a_json_object_may_stand_in_white_space():
    assert json_object(' \n{"a": {"b": [1, null]}}\n') == {"a": {"b": [1, None]}}


def test_fields_match_by_value_and_kind():
    expected = {"text": "late", "number": 3, "nothing": None, "flag": True, "list": ["a"]}
    assert field_accuracy(json.dumps({**expected, "more": 1}), expected) == 1
    given = {"text": " late ", "number": 3.0, "nothing": "null", "flag": 1}
    assert matching_fields(json.dumps(given), expected) == {
        "text": True,
        "number": True,
        "nothing": False,
        "flag": False,
        "list": False,
    }
    assert field_accuracy(json.dumps(given), expected) == pytest.approx(2 / 5)
    assert field_accuracy("late", expected) == 0
    assert matching_fields("{}", {"nothing": None}) == {"nothing": False}
