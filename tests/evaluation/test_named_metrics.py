"""Named metrics equal the packages that they are named after, on real pairs of texts."""

from __future__ import annotations

import csv
import re
import string
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from nltk.metrics.scores import accuracy, f_measure
from nltk.translate.gleu_score import sentence_gleu
from rouge_score.rouge_scorer import RougeScorer

from luthier.errors import DataError
from luthier.evaluation.metrics import (
    exact_match,
    expected_calibration_error,
    gleu,
    rouge_l,
    rouge_n,
    rouge_words,
    squad_words,
    token_f1,
)
from luthier.evaluation.named_metrics import (
    NAMES,
    OF_ANSWERS,
    bleu_counts,
    bleu_of,
    chrf_counts,
    chrf_of,
    label_of,
    named_measure,
)

PAIRS = [
    ("The cat sat on the mat.", "A cat sat on a mat."),
    ("", "Nothing was said."),
    ("It is 12, no: 13!", "It is 13."),
    ("naïve café", "naive café au lait"),
    ("ok", "ok"),
]


@pytest.fixture(scope="module")
def real_pairs(shared_data: Path) -> list[tuple[str, str]]:
    """A thousand pairs of sentences that people wrote about the same restaurant."""
    of_facts: dict[str, list[str]] = defaultdict(list)
    for path in sorted((shared_data / "e2e_nlg").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                of_facts[row["mr"]].append(row["ref"])
    pairs = [pair for texts in of_facts.values() for pair in pairwise(texts)]
    assert len(pairs) >= 1000
    return pairs[:1000]


def compare_with_packages(pairs: list[tuple[str, ...]]) -> None:
    """Each an answer, and its references."""
    answers, references = [answer for answer, *_ in pairs], [rights for _, *rights in pairs]
    streams = [list(each) for each in zip(*references, strict=True)]
    bleu = sacrebleu.corpus_bleu(answers, streams, force=True).score / 100
    assert bleu_of(bleu_counts(answers, references).sum(0)) == pytest.approx(bleu, rel=1e-9)
    chrf = sacrebleu.corpus_chrf(answers, streams).score / 100
    counts = [chrf_counts(*pair) for pair in zip(answers, references, strict=True)]
    assert chrf_of(np.array(counts).sum(0)) == pytest.approx(chrf, rel=1e-9)
    for answer, rights in zip(answers, references, strict=True):
        one = sacrebleu.sentence_chrf(answer, rights).score / 100
        assert chrf_of(np.array(chrf_counts(answer, rights))) == pytest.approx(one, abs=1e-9), (answer, rights)


def test_bleu_and_chrf_equal_those_of_sacrebleu() -> None:
    compare_with_packages([*PAIRS])


def test_bleu_and_chrf_of_several_references_equal_those_of_sacrebleu() -> None:
    others = [*(reference for _, reference in PAIRS[1:]), "A mat, and on it a cat."]
    compare_with_packages([(*pair, other) for pair, other in zip(PAIRS, others, strict=True)])
    longer = [answer + " and so on" for answer, _ in PAIRS]
    compare_with_packages([(*pair, o, more) for pair, o, more in zip(PAIRS, others, longer, strict=True)])


def test_metrics_equal_their_packages_on_a_thousand_real_pairs(real_pairs: list[tuple[str, str]]) -> None:
    compare_with_packages([*real_pairs])
    compare_with_packages(
        [(*first, right) for first, (_, right) in zip(real_pairs, real_pairs[3:], strict=False)][:200]
    )
    for answer, reference in real_pairs:
        expected = sentence_gleu([rouge_words(reference)], rouge_words(answer))
        assert gleu(answer, reference) == pytest.approx(expected, abs=1e-12)


def test_rouge_equals_rouge_score_but_for_letters_beyond_a_to_z_which_the_package_drops(
    real_pairs: list[tuple[str, str]],
) -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    own = {"rouge1": lambda a, r: rouge_n(a, r, 1), "rouge2": lambda a, r: rouge_n(a, r, 2), "rougeL": rouge_l}
    num_foreign = 0
    for answer, reference in real_pairs:
        expected = scorer.score(reference, answer)
        dropped = [re.sub(r"[^\x00-\x7f]", " ", text) for text in (answer, reference)]
        # signs such as £ belong to no word on either side; é is a letter here, and the end of a word there
        is_foreign = any(letter.isalnum() and not letter.isascii() for letter in answer + reference)
        num_foreign += is_foreign
        for name, score in own.items():
            assert score(*dropped) == pytest.approx(expected[name].fmeasure, abs=1e-12)
            if not is_foreign:
                assert score(answer, reference) == pytest.approx(expected[name].fmeasure, abs=1e-12)
    assert 0 < num_foreign < 50


def plain_words(text: str) -> list[str]:
    """The words of a text as SQuAD compares them: lower case, without ASCII punctuation and articles."""
    letters = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", letters).split()


def numbered(words: list[str]) -> set[tuple[str, int]]:
    """Words as a set in which the nth of several equal ones is a member of its own."""
    return {(word, words[:place].count(word)) for place, word in enumerate(words)}


def test_exact_match_and_token_f1_equal_nltk_s_accuracy_and_f_measure(real_pairs: list[tuple[str, str]]) -> None:
    """SQuAD's own exact match is of `plain_words`; here it is of the texts, so that it is 1 there wherever it is 1 here."""
    answers, references = ([pair[side] for pair in real_pairs] for side in (0, 1))
    found = [exact_match(*pair) for pair in real_pairs]
    assert sum(found) / 1000 == accuracy([text.strip() for text in references], [text.strip() for text in answers]) > 0
    for (answer, reference), is_same in zip(real_pairs, found, strict=True):
        own, right = plain_words(answer), plain_words(reference)
        assert token_f1(answer, reference) == pytest.approx(f_measure(numbered(right), numbered(own)), abs=1e-12)
        assert exact_match(" ".join(squad_words(answer)), " ".join(squad_words(reference))) == (own == right) >= is_same


def test_accuracy_and_macro_f1_equal_nltk_s_on_a_thousand_real_labels(shared_data: Path) -> None:
    with (shared_data / "sick_nli" / "test.tsv").open(encoding="utf-8", newline="") as file:
        labels = [row["entailment_judgment"] for row in csv.DictReader(file, delimiter="\t")][:1007]
    right = labels[:1000]
    given = [label if row % 2 else labels[row + 7] for row, label in enumerate(right)]
    given[::50] = ["none of them"] * 20
    written = [f" {label.upper()}." if row % 3 else label for row, label in enumerate(given)]
    references = [(label,) for label in right]
    assert named_measure("accuracy", [written], references)[0].estimates[0].value == accuracy(right, given)
    rows_of = [
        [{row for row, label in enumerate(each) if label == wanted} for each in (right, given)]
        for wanted in {*right, *given}
    ]
    expected = sum(f_measure(*rows) or 0 for rows in rows_of) / len(rows_of)
    assert named_measure("macro-f1", [written], references)[0].estimates[0].value == pytest.approx(expected, abs=1e-12)


def test_every_named_metric_is_1_for_the_references_themselves_and_better_than_for_nothing() -> None:
    texts = [f'{{"place": "{place}", "number": {number}}}' for number, place in enumerate(["here", "there"] * 8)]
    for name in NAMES:
        measure, _ = named_measure(name, [["nonsense"] * 16, texts], [(text,) for text in texts])
        assert measure.estimates[1].value == pytest.approx(1)
        assert measure.verdict(1) == "better"


def test_a_reference_that_a_metric_cannot_use_is_left_out_and_one_that_serves_none_is_an_error() -> None:
    measure, notes = named_measure("number", [["It is 4."] * 3], [("4",), ("5",), ("many",)])
    assert (measure.num_rows, measure.estimates[0].value) == (2, 0.5)
    assert notes == ["number: 1 of 3 references cannot be compared with."]
    with pytest.raises(DataError, match="json-fields"):
        named_measure("json-fields", [["{}"]], [("no object",)])


def test_labels_are_compared_without_case_and_signs_at_their_ends() -> None:
    assert label_of(" **Positive**. ") == label_of("positive")
    assert OF_ANSWERS["accuracy"]("Not positive", "positive") == 0
    measure, notes = named_measure("macro-f1", [["a", "b", "neither", "a"]], [("a",), ("b",), ("b",), ("a",)])
    assert measure.estimates[0].value < 1
    assert notes == ["macro-f1: up to 1 of 4 answers are none of the labels."]


def test_of_several_references_the_nearest_counts() -> None:
    references = [("Paris", "the city of Paris", "Paris, France"), ("4", "four")]
    answers = [["the city of Paris.", "four"], ["Lyon", "5"]]
    for name, score in (("rouge-1", "rouge1"), ("rouge-2", "rouge2")):
        scorer = RougeScorer([score])
        expected = [
            max(scorer.score(right, text)[score].fmeasure for right in rights)
            for text, rights in zip(answers[0], references, strict=True)
        ]
        measure, _ = named_measure(name, answers, references)
        assert measure.estimates[0].value == pytest.approx(sum(expected) / 2)
    assert named_measure("accuracy", answers, references)[0].estimates[0].value == 1
    assert named_measure("number", answers, references)[1] == ["number: 1 of 2 references cannot be compared with."]


@pytest.mark.parametrize(
    ("answer", "reference", "is_same"),
    [
        ("3 · 4 = 12, and 2 + 12 = 14.\n#### 14", "2 + 12 = 14.\n#### 14", True),
        ("So the answer is $1,250.", "#### 1250", True),
        (r"Thus \boxed{1/2} is left.", "#### 0.5", True),
        ("The answer is 14 apples.", "14", True),
        ("14 of 20\n#### 6", "#### 14", False),
        ("The answer is (b).", "Because it melts.\n#### B", True),
        ("I think B, or the answer is: c", "#### B", False),
        ("The answer is yes.", "#### Yes", True),
        ("yes", "It is so.\n#### yes", True),
        ("It may be\nor not", "#### yes", False),
        ("It may be\nor not", "A reference of\ntwo lines", None),
    ],
)
def test_answers_are_the_same_where_they_end_the_same(answer: str, reference: str, is_same: bool | None) -> None:
    found = OF_ANSWERS["final-answer"](answer, reference)
    assert found == (None if is_same is None else float(is_same))


def test_the_calibration_error_is_the_gap_between_confidence_and_rightness_in_each_bin() -> None:
    confidence_N = np.array([0.95, 0.99, 0.61, 0.62, 0.05])
    right_N = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    by_hand = (2 * abs(0.5 - 0.97) + 2 * abs(1 - 0.615) + 1 * abs(0 - 0.05)) / 5
    assert expected_calibration_error(confidence_N, right_N) == pytest.approx(by_hand)
    generator = np.random.default_rng(0)
    confidence_N, right_N = generator.uniform(size=1000), (generator.uniform(size=1000) < 0.4).astype(float)
    expected = 0.0
    for low, high in pairwise(np.linspace(0, 1, 16)):
        within = [row for row in range(1000) if low < confidence_N[row] <= high]
        gap = abs(np.mean([right_N[row] for row in within]) - np.mean([confidence_N[row] for row in within]))
        expected += len(within) / 1000 * gap
    assert expected_calibration_error(confidence_N, right_N) == pytest.approx(expected, abs=1e-12)
    sure_N = generator.uniform(size=200_000)
    assert expected_calibration_error(sure_N, (generator.uniform(size=200_000) < sure_N).astype(float)) < 0.01
