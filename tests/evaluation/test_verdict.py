import json
import math

from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import Comparison, Measure
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.types import Origin


def measure(name, before, after, low, high, *, higher_is_better=True, rows=48):
    estimates = (Estimate(before, before - 0.1, before + 0.1), Estimate(after, after - 0.1, after + 0.1))
    rises, falls = (30, 10) if after > before else (10, 30)
    comparison = Comparison(Estimate(after - before, low, high), 0.01, rises, falls)
    margin, witness = (0.01, "likelihood") if name == "loss" else (0.02, "answers")
    return Measure(name, higher_is_better, rows, estimates, (comparison,), margin, witness)


def evaluation(*measures, rows=48, candidates=("base", "tuned")):
    answer = Answered(Origin("rows.jsonl", 3), "How?", "So.", ("Hm", "So.")[: len(candidates)])
    return Evaluation(candidates, rows, measures, ("A note.",), (answer,))


LOSS = measure("loss", 2.31, 1.2, -1.3, -0.9, higher_is_better=False)
ROUGE = measure("ROUGE-L", 0.2, 0.41, 0.17, 0.25)
MATCH = measure("exact match", 0.1, 0.12, -0.05, 0.09)
WORSE = measure("token F1", 0.5, 0.3, -0.3, -0.1)


def test_better_means_lower_for_a_loss_and_higher_for_a_score():
    assert LOSS.verdict(1) == "better"
    assert ROUGE.verdict(1) == "better"
    assert WORSE.verdict(1) == "worse"
    assert measure("loss", 1.0, 2.0, 0.5, 1.5, higher_is_better=False).verdict(1) == "worse"


def test_a_difference_whose_interval_holds_0_is_unclear():
    assert MATCH.verdict(1) == "unclear"
    assert measure("loss", 0.5, 0.52, -0.01, 0.05, higher_is_better=False).verdict(1) == "unclear"


def test_few_rows_get_no_verdict():
    few = measure("ROUGE-L", 0.2, 0.41, 0.17, 0.25, rows=9)
    assert few.verdict(1) == "unclear"
    assert "they are too few (fewer than 10) for a verdict" in evaluation(few, rows=9).sentences[0]


def test_the_sentences_and_the_json_are_those_of_the_outcomes():
    found = evaluation(LOSS, MATCH, WORSE)
    assert found.sentences == (found.outcomes["tuned"].sentence,)
    assert found.as_json()["summary"] == found.outcomes["tuned"].sentence
    assert found.sentences[0].startswith("tuned is worse than base on 48 rows: token F1")


def test_one_candidate_alone_is_summed_up_by_its_numbers():
    alone = Measure("loss", False, 1, (Estimate(2.5, 2.4, 2.6),), ())
    assert evaluation(alone, rows=1, candidates=("base",)).sentences == ("base: loss 2.500 on 1 row.",)


def test_the_table_has_a_head_and_a_row_for_each_measure():
    head, loss, perplexity = evaluation(
        LOSS,
        Measure("perplexity", False, 48, (Estimate(10.074, 9, 11), Estimate(3.3201, 3, 4)), (Comparison(None, None),)),
    ).as_table()
    assert head == ["measure", "base", "tuned", "tuned - base", "rows"]
    assert loss == ["loss", "2.310 [2.210, 2.410]", "1.200 [1.100, 1.300]", "-1.110 [-1.300, -0.900]", "48"]
    assert perplexity == ["perplexity", "10.07 [9, 11]", "3.32 [3, 4]", "", "48"]


def test_the_json_is_plain_and_holds_everything():
    endless = Measure(
        "perplexity", False, 48, (Estimate(math.inf, 1.0, math.inf), Estimate(2, 1, 3)), (Comparison(None, None),)
    )
    document = json.loads(json.dumps(evaluation(LOSS, endless).as_json(), allow_nan=False))
    assert document["rows"] == 48
    assert document["candidates"] == ["base", "tuned"]
    assert document["notes"] == ["A note."]
    assert document["measures"][0]["estimates"]["tuned"]["value"] == 1.2
    assert document["measures"][0]["comparisons"]["tuned"] == {
        "against": "base",
        "difference": {"value": 1.2 - 2.31, "low": -1.3, "high": -0.9},
        "sign_test_p": 0.01,
        "rises": 10,
        "falls": 30,
        "verdict": "better",
    }
    assert document["measures"][1]["estimates"]["base"] == {"value": None, "low": 1.0, "high": None}
    assert document["answers"] == [
        {
            "file": "rows.jsonl",
            "line": 3,
            "asked": "How?",
            "reference": "So.",
            "answers": {"base": "Hm", "tuned": "So."},
        }
    ]
