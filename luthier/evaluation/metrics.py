"""How near an answer comes to its reference, as pure functions of texts.

All scores are between 0 and 1, higher is better; perplexity alone is at least 1 and lower is better.
"""

from __future__ import annotations

import json
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Scripts written without spaces: each character counts as a word of its own.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ROUGE_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_SQUAD_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def best(score: Callable[[str, str], float | None], answer: str, references: Sequence[str]) -> float | None:
    """The score of an answer against the reference that it is nearest to; None where none has one."""
    found = [value for reference in references if (value := score(answer, reference)) is not None]
    return max(found, default=None)


def exact_match(answer: str, reference: str) -> float:
    """1 if the texts are equal apart from white space at their ends, else 0."""
    return float(answer.strip() == reference.strip())


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall over words, order ignored, repeated words counted.

    Words as SQuAD compares them (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250): lower case, no punctuation,
    no English articles; here Unicode punctuation goes as well, and a Chinese or Japanese character is a word. Two
    texts without any words agree (1); one alone does not (0).
    """
    answer_words, reference_words = squad_words(answer), squad_words(reference)
    if not answer_words or not reference_words:
        return float(answer_words == reference_words)
    common = (Counter(answer_words) & Counter(reference_words)).total()
    return _f1(common, len(answer_words), len(reference_words))


def squad_words(text: str) -> list[str]:
    """The words of a text that `token_f1` compares."""
    kept = "".join(letter for letter in text.lower() if not _is_punctuation(letter))
    return _SQUAD_WORD.findall(_ARTICLE.sub(" ", kept))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence of words: Lin 2004, https://aclanthology.org/W04-1013.

    Equal to `rouge_score` without stemming for texts whose letters are a–z. That package drops every other letter; here words may
    be of any script, and a Chinese or Japanese character is a word. A text without words scores 0.
    """
    answer_words, reference_words = rouge_words(answer), rouge_words(reference)
    if not answer_words or not reference_words:
        return 0.0
    return _f1(common_length(answer_words, reference_words), len(answer_words), len(reference_words))


def rouge_n(answer: str, reference: str, n: int) -> float:
    """ROUGE-N: the F-measure over runs of n words, repeated ones counted; as `rouge_l` else."""
    answer_runs, reference_runs = (
        Counter(zip(*(words[start:] for start in range(n)), strict=False))
        for words in (rouge_words(answer), rouge_words(reference))
    )
    if not answer_runs or not reference_runs:
        return 0.0
    common = (answer_runs & reference_runs).total()
    return _f1(common, answer_runs.total(), reference_runs.total())


_GLEU_LONGEST = 4


def gleu(answer: str, reference: str) -> float:
    """GLEU: of all runs of one to four words the share in common, the smaller of precision and recall.

    Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 5.2. Words as `rouge_l` has them; a text without any scores 0.
    """
    answer_runs, reference_runs = (_runs_up_to(_GLEU_LONGEST, rouge_words(text)) for text in (answer, reference))
    most = max(answer_runs.total(), reference_runs.total())
    return (answer_runs & reference_runs).total() / most if most else 0.0


def _runs_up_to(longest: int, words: Sequence[str]) -> Counter[tuple[str, ...]]:
    """All runs of so many neighbouring words and fewer, each with how often it comes."""
    return Counter(
        run for n in range(1, longest + 1) for run in zip(*(words[start:] for start in range(n)), strict=False)
    )


def ngram_counts(text: str, order: int) -> Counter[str]:
    """The runs of so many letters in a text, each with how often it comes."""
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def rouge_words(text: str) -> list[str]:
    """The words of a text that `rouge_l` compares: runs of letters and digits in lower case."""
    return _ROUGE_WORD.findall(unicodedata.normalize("NFC", text).lower())


def common_length(left: Sequence[str], right: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    Crochemore et al. 2001, https://doi.org/10.1016/S0020-0190(00)00214-X: the row of the textbook table is one integer
    whose zero bits mark where it grows, so a step costs a few operations on long integers.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(left)) - 1
    row = everywhere
    for word in right:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & everywhere
    return len(left) - row.bit_count()


def macro_f1(answer_N: NDArray[np.int64], true_N: NDArray[np.int64], num_classes: int) -> float:
    """The mean over classes of the harmonic mean of precision and recall; classes that nothing is or is taken for are left out.

    As scikit-learn's f1_score(average="macro"). answer_N, true_N: the numbers of the classes, one a row, at least one.
    """
    joint = np.bincount(true_N * num_classes + answer_N, minlength=num_classes**2).reshape(num_classes, num_classes)
    right_C, found_C = np.diag(joint), joint.sum(0) + joint.sum(1)
    present_C = found_C > 0
    return float((2 * right_C[present_C] / found_C[present_C]).mean())


def expected_calibration_error(
    confidence_N: NDArray[np.float64], right_N: NDArray[np.float64], num_bins: int = 15
) -> float:
    """How far the share of right answers is from the confidence in them, on average over bins of like confidence.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3. confidence_N: the probability given to each answer;
    right_N: 1 where it is right, else 0.
    """
    bin_N = np.clip(np.ceil(confidence_N * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gap_B = np.bincount(bin_N, right_N - confidence_N, minlength=num_bins)
    return float(np.abs(gap_B).sum() / len(right_N))


def pearson(left_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> float:
    """The correlation of two columns, −1 to 1; 0 where one of them is constant and so has none."""
    left_N, right_N = left_N - left_N.mean(), right_N - right_N.mean()
    spread = math.sqrt(float(left_N @ left_N) * float(right_N @ right_N))
    is_constant = len(left_N) < 2 or np.ptp(left_N) == 0 or np.ptp(right_N) == 0 or spread == 0
    return 0.0 if is_constant else max(-1.0, min(1.0, float(left_N @ right_N) / spread))


def spearman(left_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> float:
    """The correlation of two columns' ranks, equal values sharing the mean of theirs; 0 where one is constant."""
    return pearson(ranks(left_N), ranks(right_N))


def ranks(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rank of each value, the smallest's 1; equal values share the mean of theirs."""
    _, place_N, count_U = np.unique(values_N, return_inverse=True, return_counts=True)
    of_each: NDArray[np.float64] = (np.cumsum(count_U) - (count_U - 1) / 2)[place_N]
    return of_each


def perplexity(nats: float) -> float:
    """exp of the mean loss (nats per token); infinite where that is beyond a float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text as a whole is, or None. A code fence or a sentence around it does not pass."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # RecursionError: brackets nested thousands deep
        return None
    return value if isinstance(value, dict) else None


def matching_fields(answer: str, expected: Mapping[str, Any]) -> dict[str, bool]:
    """For each expected field, whether the answer is a JSON object that gives it with the same value.

    Texts are compared without white space at their ends; true is not 1, and 1 is 1.0. Other fields do not matter here.
    """
    given = json_object(answer) or {}
    return {name: name in given and _same(given[name], value) for name, value in expected.items()}


def field_accuracy(answer: str, expected: Mapping[str, Any]) -> float:
    """The share of the expected fields that the answer gives rightly; 0 for an answer that is not a JSON object."""
    assert expected, "no fields are expected"
    matching = matching_fields(answer, expected)
    return sum(matching.values()) / len(matching)


def _f1(common: int, num_answer: int, num_reference: int) -> float:
    return 2 * common / (num_answer + num_reference)


def _is_punctuation(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _same(given: Any, expected: Any) -> bool:
    if isinstance(given, str) and isinstance(expected, str):
        return given.strip() == expected.strip()
    return isinstance(given, bool) == isinstance(expected, bool) and bool(given == expected)
