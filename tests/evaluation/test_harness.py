"""Tasks of lm-evaluation-harness on our engine: likelihoods against plain logits, the whole against the harness's own model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from program import within
from tiny_runs import begin, recipe_values, write_rows

from luthier.api import evaluate, load_plain
from luthier.errors import DataError, NotFound, UsageError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.harness.scoring import Scored, sampling_of
from luthier.evaluation.harness.suite import _measure, _scale, _text, check_suites, evaluate_suite
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes
from luthier.prediction.text_model import TextModel

PAIRS = [
    ("Where is order 1?", " Order 1 is here."),
    ("Where is order 1?", " It is lost"),
    ("Its total is ", "7"),
    ("", "A text without a context."),
    ("  ", "blanks alone"),
]
ROWS = [{"q": f"Where is order {n}?", "options": ["here", "on its way", "lost"], "right": n % 3} for n in range(12)]


def quiet(sentence: str) -> None:
    """Hear nothing."""


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> TextModel:
    return load_plain(str(tiny_model), quiet)


def scored(model: TextModel) -> Scored:
    return Scored(Candidate("base", model.language_model), frozenset(), Passes(Workers(1), 512, shares_prefix=True))


def by_hand(model: TextModel, context: list[int], text: list[int]) -> tuple[float, bool]:
    tokens = torch.tensor([[*context, *text]])
    with torch.inference_mode():
        logprob_TV = model.language_model.hf(tokens).logits[0].float().log_softmax(-1)
    at = range(len(context) - 1, len(context) + len(text) - 1)
    total = sum(float(logprob_TV[place, token]) for place, token in zip(at, text, strict=True))
    return total, all(int(logprob_TV[place].argmax()) == token for place, token in zip(at, text, strict=True))


def test_likelihoods_are_those_of_plain_logits(model: TextModel) -> None:
    encode = model.language_model.tokenizer.encode
    found = scored(model).likelihoods(PAIRS[:2])
    for (context, text), each in zip(PAIRS[:2], found, strict=True):
        before = encode(context)
        logprob, is_greedy = by_hand(model, before, encode(context + text)[len(before) :])
        assert each.logprob == pytest.approx(logprob, abs=1e-4)
        assert each.is_greedy == is_greedy


def test_blanks_at_the_end_of_a_context_belong_to_what_follows(model: TextModel) -> None:
    ours = scored(model)
    assert ours.likelihoods([("total is ", "7")]) == ours.likelihoods([("total is", " 7")])


def test_texts_go_on_as_by_plain_greedy_steps(model: TextModel) -> None:
    (text,) = scored(model).continued([("Where is order", {"max_gen_toks": 3})])
    tokenizer = model.language_model.tokenizer
    tokens = tokenizer.encode("Where is order")
    for _ in range(3):
        with torch.inference_mode():
            tokens.append(int(model.language_model.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert text == tokenizer.decode(tokens[-3:], skip_special_tokens=True)


def test_long_texts_go_by_windows_in_which_each_token_counts_once(model: TextModel) -> None:
    ours = scored(model)
    text = "Where is order 5, the lamp? " * 12
    tokens = model.language_model.tokenizer.encode(text)
    ours._room = 16
    windows = ours._windows(tokens)
    assert [token for _, window in windows for token in window] == tokens
    assert all(len(before) + len(window) <= 17 for before, window in windows)
    total = sum(by_hand(model, before, window)[0] for before, window in windows)
    assert ours.rolling([text]) == [pytest.approx(total, abs=1e-3)]
    assert ours.num_cut == 0


def test_what_is_too_long_loses_its_beginning_and_is_counted(model: TextModel) -> None:
    ours = scored(model)
    ours._room = 8
    long = ours.likelihoods([("Where is order 5, the lamp? " * 4, " here")])[0]
    assert ours.num_cut == 1
    assert long.logprob < 0


def test_settings_of_generation_are_taken_or_refused() -> None:
    sampling = sampling_of({"until": ["\n", ""], "do_sample": False, "temperature": 0.7, "max_gen_toks": 5})
    assert (sampling.stop, sampling.temperature, sampling.max_new_tokens) == (("\n",), 0.0, 5)
    assert sampling_of({"do_sample": True, "temperature": 0.7, "top_k": 0}).temperature == 0.7
    with pytest.raises(UsageError, match="num_beams"):
        sampling_of({"num_beams": 4})


def test_without_the_harness_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("lm_eval", "lm_eval.evaluator"):  # another test of the process may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "task.yaml").write_text("")
    with pytest.raises(UsageError) as caught:
        check_suites([f"lm-eval:{tmp_path / 'task.yaml'}"])
    assert "pip install 'luthier[lm-eval]'" in caught.value.mend
    with pytest.raises(NotFound, match="no task file"):
        check_suites(["lm-eval:nowhere.yaml"])
    with pytest.raises(UsageError, match="no suite"):
        check_suites(["helm:mmlu"])


def test_metrics_that_are_no_means_have_margins_of_their_scale() -> None:
    assert _scale("bleu", [40.0, 50.0]) == (2.0, 100.0)
    assert _scale("bleu", [0.4, 0.0]) == (2.0, 100.0)
    assert _scale("word_perplexity", [20.0, 30.0]) == (pytest.approx(0.2), 30.0)
    assert _scale("bits_per_byte", [0.9, 0.8]) == (pytest.approx(0.009), 0.9)
    assert _scale("matthews_correlation", [0.4, 0.5]) == (0.02, 1.0)


class Counted:
    """A task whose metric counts how often it is asked: the mean of squares, which is no mean of what documents have."""

    def __init__(self) -> None:
        self.asked = 0

    def aggregation(self) -> dict[str, Any]:
        return {"bleu": self.of, "word_perplexity": self.of}

    def of(self, values: list[float]) -> float:
        self.asked += 1
        return sum(values) ** 2 / len(values)


@pytest.mark.parametrize(("metric", "witness"), [("bleu", "answers"), ("word_perplexity", "likelihood")])
def test_metrics_of_all_documents_are_counted_as_often_as_the_harness_does(metric: str, witness: str) -> None:
    task, values = Counted(), [[0.5] * 30, [0.5 + row % 2 for row in range(30)]]
    reported = [{"results": {"t": {f"{metric},none": task.of(own)}}, "higher_is_better": {}} for own in values]
    measure = _measure(("t", metric, "none"), reported, values, task)
    assert task.asked <= 2 + 2 * 201
    assert measure.witness == witness
    assert measure.verdict(1) == "better"
    assert measure.comparisons[0].bootstrap_p is not None
    assert measure.comparisons[0].bootstrap_p < 1e-3, "200 draws show what eight metrics ask for"


class Posed:
    """A task whose questions, answers and choices are those of a document."""

    def get_config(self, key: str) -> Any:
        return {"doc_to_choice": "choices"}.get(key)

    def doc_to_text(self, document: dict[str, Any]) -> Any:
        return document["question"]

    def doc_to_target(self, document: dict[str, Any]) -> Any:
        return document["answer"]

    def doc_to_choice(self, document: dict[str, Any]) -> list[str]:
        return list(document["choices"])


@pytest.mark.parametrize(
    ("question", "answer", "text"),
    [
        ("Which?", "this", "Which?\nthis"),
        ("Which?", 1, "Which?\nthat"),
        ("Which?", [1, 0], "Which?\nthat"),
        ("Which?", ["those", "these"], "Which?\nthose"),
        (0, " fits", "this\n fits"),
        ("Which?", -1, "Which?\n"),
        ("Which?", [], "Which?\n"),
    ],
)
def test_the_text_of_a_document_is_its_question_and_its_right_answer(question: Any, answer: Any, text: str) -> None:
    assert _text(Posed(), {"question": question, "answer": answer, "choices": ["this", "that"]}) == text


# ── with the harness ────────────────────────────────────────────────────────────────────────────────────────────────


def task(folder: Path, name: str, lines: str) -> str:
    """Write a task over ROWS; give its suite."""
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    file = folder / f"{name}.yaml"
    file.write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: '{data}'}}\ntest_split: test\n{lines}"
    )
    return f"lm-eval:{file}"


CHOICES = "output_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: options\ndoc_to_target: right\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
ANSWERS = (
    "output_type: generate_until\ndoc_to_text: '{{q}}'\ndoc_to_target: '{{options[right]}}'\n"
    "generation_kwargs: {until: ['?'], max_gen_toks: 4, do_sample: false}\nmetric_list: [{metric: exact_match}]\n"
)
TEXTS = "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{q}}'\nmetric_list: [{metric: word_perplexity}]\n"


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness, whose data sets are kept in the test's folder."""
    found = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def test_a_run_is_evaluated_on_local_tasks_and_the_numbers_are_the_harness_s_own(
    harness: Any, tiny_model: Path, tmp_path: Path, model: TextModel
) -> None:
    begin(recipe_values(tiny_model, write_rows(tmp_path / "train.jsonl", 8), training={"steps": 2}), tmp_path / "run")
    suites = [task(tmp_path, "choose", CHOICES), task(tmp_path, "answer", ANSWERS), task(tmp_path, "read", TEXTS)]
    options = [word for suite in suites for word in ("--suite", suite)]
    ended = within("evaluate", "run", *options, "--no-forgetting", "--json", folder=tmp_path)
    assert ended.code == 0, ended.err
    document = ended.document
    assert document["rows"] == 36
    assert document["verdict"] in ("better", "same", "worse", "unclear")
    assert set(document["metrics"]) == set(document["intervals"]) == {
        "choose: acc", "choose: acc_norm", "answer: exact_match", "read: word_perplexity"
    }  # fmt: skip
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=model.language_model.hf, tokenizer=model.language_model.tokenizer, batch_size=4)
    found = harness.simple_evaluate(
        theirs, tasks=[suite.removeprefix("lm-eval:") for suite in suites], bootstrap_iters=0
    )
    for name, own in document["metrics"].items():
        of_task, metric = name.split(": ")
        assert own["base"] == pytest.approx(found["results"][of_task][f"{metric},none"], rel=1e-4)


def test_documents_that_a_run_was_trained_on_are_told_task_by_task(
    harness: Any, tiny_model: Path, tmp_path: Path
) -> None:
    learned = [{"prompt": row["q"], "completion": row["options"][row["right"]]} for row in (ROWS[2], ROWS[5])]
    rows = write_rows(tmp_path / "train.jsonl", 4, start=50)
    rows.write_text(rows.read_text() + "".join(json.dumps(row) + "\n" for row in learned))
    begin(recipe_values(tiny_model, rows, training={"steps": 1, "checkpoint_every": 1}), tmp_path / "run")
    suites = [task(tmp_path, "choose", CHOICES), task(tmp_path, "answer", ANSWERS)]
    found = evaluate(tmp_path / "run", suites=suites, limit=4)
    assert found.contamination is not None
    assert found.contamination.as_json() == {"rows": 8, "training_rows": 6, "exact": [2, 6], "near": []}
    said = "1 of 4 rows stand in the training rows, 1 word for word and 0 nearly (number 3)"
    assert [name for name in ("choose", "answer") for note in found.notes if note.startswith(f"{name}: {said}")] == [
        "choose",
        "answer",
    ]
    alone = evaluate(tmp_path / "run", suites=suites[:1], limit=6)
    assert [note.split(",")[0] for note in alone.notes if "memory" in note] == [
        "2 of 6 rows stand in the training rows"
    ]
    rows.unlink()
    told: list[str] = []
    unread = evaluate(tmp_path / "run", suites=suites[:1], limit=2, announce=told.append)
    assert unread.contamination is None
    assert any("The rows that the run was trained on cannot be read" in sentence for sentence in told)


def test_what_is_wrong_with_a_task_is_said(harness: Any, tmp_path: Path, model: TextModel) -> None:
    candidates = [Candidate("base", model.language_model)]
    passes = Passes(Workers(1), 512)
    broken = task(tmp_path, "broken", CHOICES.replace("options", "no_such_column"))
    with pytest.raises(DataError, match="broken"):
        evaluate_suite(candidates, [broken], frozenset(), passes)
    (tmp_path / "rows.yaml").write_text("- nothing")
    with pytest.raises(DataError, match="cannot load"):
        evaluate_suite(candidates, [f"lm-eval:{tmp_path / 'rows.yaml'}"], frozenset(), passes)
