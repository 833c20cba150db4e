"""Named metrics equal the packages that they are named after, on real pairs of texts."""

from __future__ import annotations

import csv
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from luthier.errors import DataError
from luthier.evaluation.metrics import expected_calibration_error, rouge_l, rouge_n
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


def compare_with_packages(pairs: list[tuple[str, str]]) -> None:
    answers, references = [answer for answer, _ in pairs], [reference for _, reference in pairs]
    bleu = sacrebleu.corpus_bleu(answers, [references], force=True).score / 100
    assert bleu_of(bleu_counts(answers, references).sum(0)) == pytest.approx(bleu, rel=1e-9)
    chrf = sacrebleu.corpus_chrf(answers, [references]).score / 100
    assert chrf_of(np.array([chrf_counts(*pair) for pair in pairs]).sum(0)) == pytest.approx(chrf, rel=1e-9)
    for answer, reference in pairs[:50]:
        one = sacrebleu.sentence_chrf(answer, [reference]).score / 100
        assert chrf_of(np.array(chrf_counts(answer, reference))) == pytest.approx(one, abs=1e-9), (answer, reference)


def test_bleu_and_chrf_equal_those_of_sacrebleu() -> None:
    compare_with_packages(PAIRS)


def test_metrics_equal_their_packages_on_a_thousand_real_pairs(real_pairs: list[tuple[str, str]]) -> None:
    compare_with_packages(real_pairs)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    own = {"rouge1": lambda a, r: rouge_n(a, r, 1), "rouge2": lambda a, r: rouge_n(a, r, 2), "rougeL": rouge_l}
    for answer, reference in real_pairs:
        if not (answer + reference).isascii():
            continue  # the package drops letters beyond a–z
        expected = scorer.score(reference, answer)
        for name, score in own.items():
            assert score(answer, reference) == pytest.approx(expected[name].fmeasure, abs=1e-12)


def test_every_named_metric_is_1_for_the_references_themselves_and_better_than_for_nothing() -> None:
    references = [f'{{"place": "{place}", "number": {number}}}' for number, place in enumerate(["here", "there"] * 8)]
    for name in NAMES:
        measure, _ = named_measure(name, [["nonsense"] * 16, references], references)
        assert measure.estimates[1].value == pytest.approx(1)
        assert measure.verdict(1) == "better"


def test_a_reference_that_a_metric_cannot_use_is_left_out_and_one_that_serves_none_is_an_error() -> None:
    measure, notes = named_measure("number", [["It is 4."] * 3], ["4", "5", "many"])
    assert (measure.num_rows, measure.estimates[0].value) == (2, 0.5)
    assert notes == ["number: 1 of 3 references cannot be compared with."]
    with pytest.raises(DataError, match="json-fields"):
        named_measure("json-fields", [["{}"]], ["no object"])


def test_labels_are_compared_without_case_and_signs_at_their_ends() -> None:
    assert label_of(" **Positive**. ") == label_of("positive")
    assert OF_ANSWERS["accuracy"]("Not positive", "positive") == 0
    measure, notes = named_measure("macro-f1", [["a", "b", "neither", "a"]], ["a", "b", "b", "a"])
    assert measure.estimates[0].value < 1
    assert notes == ["macro-f1: up to 1 of 4 answers are none of the labels."]


def test_the_calibration_error_is_the_gap_between_confidence_and_rightness_in_each_bin() -> None:
    confidence_N = np.array([0.95, 0.99, 0.61, 0.62, 0.05])
    right_N = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    by_hand = (2 * abs(0.5 - 0.97) + 2 * abs(1 - 0.615) + 1 * abs(0 - 0.05)) / 5
    assert expected_calibration_error(confidence_N, right_N) == pytest.approx(by_hand)
    generator = np.random.default_rng(0)
    sure_N = generator.uniform(size=200_000)
    assert expected_calibration_error(sure_N, (generator.uniform(size=200_000) < sure_N).astype(float)) < 0.01
