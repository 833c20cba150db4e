"""What rows are taken for where no objective asks: inline rows that could be several things, and every shared set."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from form_rows import rows_of, shared_rows
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.formats import FORMS, faults, recognise_any, to_records
from luthier.errors import DataError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}

NATURAL: list[tuple[dict[str, Any], str, str | None]] = [
    ({"text": "Nice film", "label": 1}, "classification", "classification"),
    ({"instruction": "Hi", "context": "", "response": "Hello", "category": "chat"}, "qa", "sft"),
    ({"question": "Hi", "answer": "Hello", "category": "chat"}, "completion", "sft"),
    ({"instruction": "Hi", "output": "a", "chosen": "b", "rejected": "c"}, "preferences", "dpo"),
    ({"prompt": "Hi", "completion": "a", "label": False}, "verdicts", "kto"),
    ({"messages": [USER, ANSWER], "category": "chat"}, "chat", "sft"),
    ({"sentence_A": "a", "sentence_B": "b", "relatedness_score": 3.5, "entailment_judgment": "NO"}, "classification", "classification"),
    ({"sentence1": "a", "sentence2": "b", "label": 3.5}, "scores", "regression"),
    ({"text": "a", "url": "b"}, "text", "sft"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "form", "objective"), NATURAL)
def test_rows_are_taken_for_what_they_most_naturally_are(values: dict[str, Any], form: str, objective: str) -> None:
    found = recognise_any(rows_of(values, values))
    assert (found.name, found.objective) == (form, objective)
    assert found.reason


def test_a_form_that_is_named_is_not_guessed() -> None:
    found = recognise_any(rows_of({"text": "Nice film", "label": 1}), "text")
    assert found[:4] == ("text", "text", "data.format says so", "sft")
    with pytest.raises(DataError, match=r"data\.format is tags, but the rows do not have that form") as caught:
        recognise_any(rows_of({"text": "Nice film"}), "tags")
    assert "tokens and tags" in caught.value.mend


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "images stands beside"),
        ({"prompt": "Hi", "completion": "Hello", "context": "There"}, "may rest on context"),
        ({"prompt": "Hi"}, "no answer to learn"),
        ({"question_id": 1, "turns": ["Hi"], "category": "x"}, "questions without answers, for evaluation"),
        ({"facts": 1, "says": "b", "more": "c"}, "fit no form"),
    ],
)
def test_rows_that_nothing_should_learn_from_are_refused(values: dict[str, Any], found: str) -> None:
    with pytest.raises(DataError) as caught:
        recognise_any(rows_of(values, values))
    assert found in caught.value.found
    assert caught.value.mend


# ── rows of any content ─────────────────────────────────────────────────────────────────────────────────────────────

KEYS = [
    "prompt",
    "replies",
    "text",
    "role",
    "chosen",
    "rejected",
    "messages",
    "label",
    "tokens",
    "tags",
    "question",
    "choices",
]
KEYS += [
    "answer",
    "rationale",
    "schema",
    "sql",
    "source",
    "target",
    "context",
    "answers",
    "paragraphs",
    "fields",
    "instances",
]
KEYS += [
    "instruction",
    "anchor",
    "positive",
    "negative",
    "score",
    "sentence1",
    "sentence2",
    "margin",
    "input",
    "mr",
    "ref",
]
KEYS += ["column_1", "column_2", "column_3", "preferred_output", "non_preferred_output", "conversations"]
INNER = [
    "text",
    "role",
    "replies",
    "rank",
    "content",
    "from",
    "value",
    "context",
    "qas",
    "answers",
    "answer_start",
    "messages",
]
INNER += ["question", "input", "output", "label"]
WORDS = [
    "",
    "prompter",
    "assistant",
    "user",
    "gpt",
    "### Human: a ### Assistant: b",
    "\n\nHuman: a\n\nAssistant: b",
    "B-x",
    "I-x",
]
WORDS += ["#### 5", "SELECT", "true", "1", "[1]", "a", "cause"]
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.floats(), st.sampled_from(WORDS))
CONTENT = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=5)
)
ROWS = st.lists(st.dictionaries(st.sampled_from(KEYS), CONTENT, max_size=6), min_size=1, max_size=3)


@given(ROWS, st.sampled_from(FORMS))
def test_rows_of_any_content_become_records_or_are_refused_in_words(values: list[dict[str, Any]], form: Any) -> None:
    rows = rows_of(*values)
    for name in ("auto", form.NAME):
        for fault in faults(rows, name, form.GIVES):
            assert fault.found
            assert fault.mend
    with suppress(DataError):
        natural = recognise_any(rows)
        assert (natural.name, natural.gives) in [(form.NAME, form.GIVES) for form in FORMS]


# ── every shared set ────────────────────────────────────────────────────────────────────────────────────────────────

TABLE: list[tuple[str, str, str, int, int]] = [
    # file, form, what it gives, records of the rows that are well, rows at fault
    ("ag_news/classes.txt", "text", "text", 1, 0),
    ("ag_news/test_4000.csv", "classification", "labels", 4000, 0),
    ("alpaca_demo/alpaca_en_demo.json", "alpaca", "text", 999, 0),
    ("alpaca_demo/alpaca_zh_sample.jsonl", "alpaca", "text", 200, 0),
    ("alpaca_eval_subset/text_davinci_003_outputs.jsonl", "alpaca", "text", 460, 1),
    ("banking77/test.csv", "classification", "labels", 3080, 0),
    ("banking77/train.csv", "classification", "labels", 10003, 0),
    ("bitext_support/test.csv", "classification", "labels", 810, 0),
    ("bitext_support/train.csv", "classification", "labels", 6480, 0),
    ("c4_demo/c4_demo.jsonl", "text", "text", 300, 0),
    ("chat_toolcall/glaive_toolcall_en_demo.json", "sharegpt", "text", 300, 0),
    ("chat_toolcall/reason_tool_use_demo_50.jsonl", "chat", "text", 50, 0),
    ("dpo_kto_demo/dpo_en_demo.json", "preferences", "preferences", 299, 0),
    ("dpo_kto_demo/kto_en_demo.json", "verdicts", "verdicts", 300, 0),
    ("e2e_nlg/devset.csv", "data-to-text", "text", 4672, 0),
    ("e2e_nlg/testset_w_refs.csv", "data-to-text", "text", 4693, 0),
    ("flan_cot/cot_mixture.jsonl", "rationale", "text", 2000, 0),
    ("flan_cot/strategyqa_train.tsv", "rationale", "text", 2061, 0),
    ("gsm8k/test.jsonl", "rationale", "text", 1319, 0),
    ("gsm8k/train_1500.jsonl", "rationale", "text", 1500, 0),
    ("hh_rlhf_harmless/harmless_base_test.jsonl.gz", "hh-rlhf", "preferences", 2308, 4),
    ("humaneval/HumanEval.jsonl.gz", "completion", "text", 164, 0),
    ("legalbench_ccby/ssla_individual_defendants_150.jsonl", "completion", "text", 150, 0),
    ("legalbench_ccby/tasks.jsonl", "fields", "text", 596, 0),
    ("oasst1_trees/en_100_tree.jsonl", "oasst", "text", 100, 0),
    ("pubmedqa/pqal_400.json", "classification", "labels", 400, 0),
    ("scitldr/test.jsonl", "summary", "text", 618, 0),
    ("scitldr/train_500.jsonl", "summary", "text", 500, 0),
    ("self_instruct/seed_tasks.jsonl", "alpaca", "text", 175, 0),
    ("self_instruct/user_oriented_instructions.jsonl", "alpaca", "text", 252, 0),
    ("sharegpt_dummy/dummy_conversation.json", "sharegpt", "text", 500, 0),
    ("sick_nli/test.tsv", "classification", "labels", 4927, 0),
    ("sick_nli/train.tsv", "classification", "labels", 4500, 0),
    ("stack_exchange_paired_tiny/stack_exchange_paired_tiny.json", "preferences", "preferences", 25, 0),
    ("superglue_small/boolq_dev32.jsonl", "classification", "labels", 32, 0),
    ("superglue_small/boolq_train.jsonl", "classification", "labels", 32, 0),
    ("superglue_small/boolq_val_600.jsonl", "classification", "labels", 600, 0),
    ("superglue_small/copa_dev32.jsonl", "choices", "choices", 32, 0),
    ("superglue_small/copa_train.jsonl", "choices", "choices", 32, 0),
    ("superglue_small/copa_val.jsonl", "choices", "choices", 100, 0),
    ("superglue_small/wic_dev32.jsonl", "classification", "labels", 32, 0),
    ("superglue_small/wic_train.jsonl", "classification", "labels", 32, 0),
    ("superglue_small/wic_val.jsonl", "classification", "labels", 638, 0),
    ("the_verdict/the-verdict.txt", "text", "text", 1, 0),
    ("tiny_shakespeare/input.txt", "text", "text", 1, 0),
    ("tinystories_sample/tinystories.txt", "text", "text", 1, 0),
    ("truthfulqa/TruthfulQA.csv", "choices", "choices", 817, 0),
    ("uci_sentiment/amazon_cells_labelled.txt", "classification", "labels", 1000, 0),
    ("uci_sentiment/imdb_labelled.txt", "classification", "labels", 1000, 0),
    ("uci_sentiment/yelp_labelled.txt", "classification", "labels", 1000, 0),
    ("wikisql_text/test.jsonl", "sql", "text", 100, 0),
    ("wikisql_text/train.jsonl", "sql", "text", 1000, 0),
    ("wikisql_text/valid.jsonl", "sql", "text", 100, 0),
    ("wikitext2/test.txt", "text", "text", 1, 0),
    ("wikitext2/valid_first_half.txt", "text", "text", 1, 0),
    ("wnut17_ner/dev.conll", "tags", "tags", 1009, 0),
    ("wnut17_ner/test.conll", "tags", "tags", 1285, 2),
    ("wnut17_ner/train.conll", "tags", "tags", 3394, 0),
    ("xquad_en_zh/xquad.en.json", "qa", "text", 1190, 0),
    ("xquad_en_zh/xquad.zh.json", "qa", "text", 1190, 0),
]
REFUSED: list[tuple[str, str]] = [
    ("ifeval/input_data.jsonl", "questions without answers, for evaluation"),
    ("mt_bench/judge_prompts.jsonl", "templates for the prompts of a judge"),
    ("mt_bench/question.jsonl", "questions without answers, for evaluation"),
    ("mt_bench/reference_answer_gpt-4.jsonl", "answers without their questions"),
    ("qlora_gpt4_ratings/pairwise_vicuna.csv", "a judge's verdicts on models, without questions and answers"),
    ("qlora_gpt4_ratings/relative_vicuna.csv", "a judge's scores of models, without questions and answers"),
    ("vicuna_bench/question.jsonl", "questions without answers, for evaluation"),
    ("vicuna_bench/reference_answer_gpt-4.jsonl", "answers without their questions"),
    ("vicuna_gpt4_judgments/judgments.jsonl", "a judge's verdicts on the answers of two models"),
]


@pytest.mark.parametrize(("name", "form", "gives", "num_records", "num_faults"), TABLE, ids=[line[0] for line in TABLE])
def test_every_shared_set_is_recognised_without_an_option(
    name: str, form: str, gives: Any, num_records: int, num_faults: int, shared_data: Path
) -> None:
    rows = shared_rows(shared_data / name)
    found = recognise_any(rows)
    assert (found.name, found.gives) == (form, gives)
    at_fault = {fault.line for fault in faults(rows, "auto", gives)}
    well = [row for row in rows if row.origin.line not in at_fault]
    assert len(at_fault) == num_faults
    assert len(to_records(well, "auto", gives).records) == num_records


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_sets_to_measure_models_with_are_refused_for_what_they_are(name: str, reason: str, shared_data: Path) -> None:
    with pytest.raises(DataError) as caught:
        recognise_any(shared_rows(shared_data / name))
    assert reason in caught.value.found


def test_the_table_has_every_shared_set(shared_data: Path) -> None:
    files = {str(path.relative_to(shared_data)) for path in shared_data.glob("*/*")}
    models = {name for name in files if name.startswith("stories260k_llama/")}
    assert {line[0] for line in (*TABLE, *REFUSED)} == files - models
