"""Every file of the shared data sets: read whole, with the rows that its publisher counts."""

from __future__ import annotations

import pytest
from data_files import silent

from luthier.data.reading import read_rows
from luthier.errors import DataError

FILES: dict[str, tuple[int, str]] = {
    "ag_news/test_4000.csv": (4000, "column_1 column_2 column_3"),
    "alpaca_demo/alpaca_en_demo.json": (999, "instruction input output"),
    "alpaca_demo/alpaca_zh_sample.jsonl": (200, "instruction input output"),
    "alpaca_eval_subset/text_davinci_003_outputs.jsonl": (461, "dataset instruction output generator"),
    "banking77/train.csv": (10_003, "text category"),
    "banking77/test.csv": (3080, "text category"),
    "bitext_support/train.csv": (
        6480,
        "utterance intent entity_type entity_value start_offset end_offset category tags",
    ),
    "bitext_support/test.csv": (810, "utterance intent entity_type entity_value start_offset end_offset category tags"),
    "c4_demo/c4_demo.jsonl": (300, "text"),
    "chat_toolcall/glaive_toolcall_en_demo.json": (300, "conversations tools"),
    "chat_toolcall/reason_tool_use_demo_50.jsonl": (50, "messages tools"),
    "dpo_kto_demo/dpo_en_demo.json": (299, "conversations chosen rejected"),
    "dpo_kto_demo/kto_en_demo.json": (300, "messages label"),
    "e2e_nlg/devset.csv": (4672, "mr ref"),
    "e2e_nlg/testset_w_refs.csv": (4693, "mr ref"),
    "flan_cot/cot_mixture.jsonl": (2000, "task input answer rationale"),
    "flan_cot/strategyqa_train.tsv": (2061, "column_1 column_2 column_3"),
    "gsm8k/test.jsonl": (1319, "question answer"),
    "gsm8k/train_1500.jsonl": (1500, "question answer"),
    "hh_rlhf_harmless/harmless_base_test.jsonl.gz": (2312, "chosen rejected"),
    "humaneval/HumanEval.jsonl.gz": (164, "task_id prompt entry_point canonical_solution test"),
    "ifeval/input_data.jsonl": (541, "key prompt instruction_id_list kwargs"),
    "legalbench_ccby/ssla_individual_defendants_150.jsonl": (150, "text answer"),
    "legalbench_ccby/tasks.jsonl": (596, "task question fields answer"),
    "mt_bench/judge_prompts.jsonl": (
        8,
        "name type system_prompt prompt_template description category output_format",
    ),
    "mt_bench/question.jsonl": (80, "question_id category turns reference"),
    "mt_bench/reference_answer_gpt-4.jsonl": (30, "question_id answer_id model_id choices tstamp"),
    "oasst1_trees/en_100_tree.jsonl": (100, "message_tree_id tree_state prompt"),
    "pubmedqa/pqal_400.json": (
        400,
        "id QUESTION CONTEXTS LABELS MESHES YEAR reasoning_required_pred reasoning_free_pred final_decision LONG_ANSWER",
    ),
    "qlora_gpt4_ratings/pairwise_vicuna.csv": (4480, "model_1 model_2 question_id verdict"),
    "qlora_gpt4_ratings/relative_vicuna.csv": (5760, "file_model_1 file_model_2 question_id score_1 score_2"),
    "scitldr/test.jsonl": (618, "source source_labels rouge_scores paper_id target title"),
    "scitldr/train_500.jsonl": (500, "source source_labels rouge_scores paper_id target title"),
    "self_instruct/seed_tasks.jsonl": (175, "id name instruction instances is_classification"),
    "self_instruct/user_oriented_instructions.jsonl": (252, "id motivation_app instruction instances"),
    "sharegpt_dummy/dummy_conversation.json": (500, "id conversations"),
    "sick_nli/train.tsv": (4500, "pair_ID sentence_A sentence_B relatedness_score entailment_judgment"),
    "sick_nli/test.tsv": (4927, "pair_ID sentence_A sentence_B relatedness_score entailment_judgment"),
    "stack_exchange_paired_tiny/stack_exchange_paired_tiny.json": (25, "question response_j response_k"),
    "superglue_small/boolq_train.jsonl": (32, "question passage idx label"),
    "superglue_small/boolq_dev32.jsonl": (32, "question passage idx label"),
    "superglue_small/boolq_val_600.jsonl": (600, "question passage idx label"),
    "superglue_small/copa_train.jsonl": (32, "premise choice1 choice2 question label idx"),
    "superglue_small/copa_dev32.jsonl": (32, "premise choice1 choice2 question label idx"),
    "superglue_small/copa_val.jsonl": (100, "premise choice1 choice2 question label idx"),
    "superglue_small/wic_train.jsonl": (32, "word sentence1 sentence2 idx label start1 start2 end1 end2 version"),
    "superglue_small/wic_dev32.jsonl": (32, "word sentence1 sentence2 idx label start1 start2 end1 end2 version"),
    "superglue_small/wic_val.jsonl": (638, "word sentence1 sentence2 idx label start1 start2 end1 end2 version"),
    "the_verdict/the-verdict.txt": (1, "text"),
    "tiny_shakespeare/input.txt": (1, "text"),
    "tinystories_sample/tinystories.txt": (1, "text"),
    "truthfulqa/TruthfulQA.csv": (
        817,
        "Type|Category|Question|Best Answer|Correct Answers|Incorrect Answers|Source",
    ),
    "uci_sentiment/amazon_cells_labelled.txt": (1000, "column_1 column_2"),
    "uci_sentiment/imdb_labelled.txt": (1000, "column_1 column_2"),
    "uci_sentiment/yelp_labelled.txt": (1000, "column_1 column_2"),
    "vicuna_bench/question.jsonl": (80, "question_id category turns"),
    "vicuna_bench/reference_answer_gpt-4.jsonl": (10, "question_id answer_id model_id choices tstamp"),
    "vicuna_gpt4_judgments/judgments.jsonl": (
        320,
        "question_id category question model_1 model_2 answer_1 answer_2 judge verdict judgment",
    ),
    "wikisql_text/train.jsonl": (1000, "text"),
    "wikisql_text/valid.jsonl": (100, "text"),
    "wikisql_text/test.jsonl": (100, "text"),
    "wikitext2/test.txt": (1, "text"),
    "wikitext2/valid_first_half.txt": (1, "text"),
    "wnut17_ner/train.conll": (3394, "tokens tags"),
    "wnut17_ner/dev.conll": (1009, "tokens tags"),
    "wnut17_ner/test.conll": (1287, "tokens tags"),
    "xquad_en_zh/xquad.en.json": (48, "paragraphs title"),
    "xquad_en_zh/xquad.zh.json": (48, "paragraphs title"),
}
"""Rows and columns. The names of classes are no rows: ag_news/classes.txt is read with the file beside it."""


def test_every_file_is_read_whole(shared_data):
    for name, (num_rows, columns) in FILES.items():
        rows = read_rows(str(shared_data / name), silent)
        assert len(rows) == num_rows, name
        expected = columns.split("|" if "|" in columns else " ")
        assert list(dict.fromkeys(column for row in rows[:50] for column in row.values))[: len(expected)] == expected, (
            name
        )
        assert rows[-1].origin.line >= num_rows, name


def test_every_set_is_named_above(shared_data):
    files = {path.relative_to(shared_data).as_posix() for path in shared_data.glob("*/*")}
    assert {name for name in files if not name.startswith("stories260k_llama/")} == {*FILES, "ag_news/classes.txt"}


def test_every_set_is_read_as_a_folder_but_a_model_is_none(shared_data):
    for folder in sorted(path for path in shared_data.iterdir() if path.is_dir()):
        expected = sum(rows for name, (rows, _) in FILES.items() if name.startswith(f"{folder.name}/"))
        if expected:
            assert len(read_rows(str(folder), silent)) == expected, folder.name
        else:
            with pytest.raises(DataError, match="the folder of a model"):
                read_rows(str(folder), silent)


def test_the_first_and_the_odd_rows_are_whole(shared_data):
    news = read_rows(str(shared_data / "ag_news/test_4000.csv"), silent)
    assert news[0].values["column_1"] == "Sci/Tech"
    assert 'launched a "Music Manifesto" campaign' in news[0].values["column_3"]
    assert {row.values["column_1"] for row in news} == {"World", "Sports", "Business", "Sci/Tech"}
    films = shared_data / "uci_sentiment/imdb_labelled.txt"
    pairs = [list(row.values.values()) for row in read_rows(str(films), silent)]
    assert pairs == [line.split("\t") for line in films.read_text().rstrip("\n").split("\n")]
    words = read_rows(str(shared_data / "wnut17_ner/train.conll"), silent)
    assert words[0].values["tokens"][:3] == ["@paulwalk", "It", "'s"]
    assert sum(len(row.values["tokens"]) for row in words) == 62_730
