"""Every shipped recipe is carried out for a step, on a few rows of the form that it is for and a tiny model of its kind."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from models.tiny import tiny_config
from small_tokenizers import byte_level
from tokenizers import processors
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from luthier.recipe import load_recipe
from luthier.recipe.yaml_text import Parsed, parse_yaml
from luthier.run import train_recipe
from luthier.studies.classic_path import read_path, walk

REPOSITORY = Path(__file__).resolve().parents[1]
PATHS = {path.stem: path for path in sorted((REPOSITORY / "recipes" / "rlhf").glob("*.yaml"))}
RECIPES = {path.stem: path for path in sorted((REPOSITORY / "recipes").glob("*.yaml"))}
NUM_ROWS = 24


def lines(make: Callable[[int], Any]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(make(index)) + "\n" for index in range(NUM_ROWS))


def tree(index: int) -> dict[str, Any]:
    """A tree of one question with two ranked answers."""
    answers = [
        {"message_id": f"{index}-{rank}", "text": f"Answer {rank} to {index}.", "role": "assistant", "lang": "en", "rank": rank, "replies": []}
        for rank in (1, 0)
    ]  # fmt: skip
    question = {
        "message_id": f"{index}",
        "text": f"Question {index}?",
        "role": "prompter",
        "lang": "en",
        "replies": answers,
    }
    return {"message_tree_id": f"{index}", "tree_state": "ready_for_export", "prompt": question}


def sentences(first: int, count: int) -> str:
    """Tagged sentences in CoNLL form."""
    return "".join(f"Anna{i}\tB-person\nsaw\tO\nRome\tB-place\n\n" for i in range(first, first + count))


PAIRS = {"pairs.jsonl": lines(lambda i: {"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "No idea."})}

TEXTS = {"texts.jsonl": lines(lambda i: {"text": f"Text {i} " + "goes on and on " * 40})}

HARMLESS = lines(
    lambda i: {
        "chosen": f"\n\nHuman: What is {i}?\n\nAssistant: It is {i}.",
        "rejected": f"\n\nHuman: What is {i}?\n\nAssistant: No idea.",
    }
)
PAPERS = lines(lambda i: {"source": [f"We study {i}.", "It works."], "target": [f"On {i}.", "Another."]})

PATH_ROWS: dict[str, dict[str, str]] = {
    "helpful-harmless": {"pairs.jsonl": HARMLESS},
    "summarisation": {"papers.jsonl": PAPERS},
}

ROWS: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        ("domain-pretraining", "prefix-lm", "mlm-adaptation", "t5-span-corruption", "ul2", "denoising"), TEXTS
    ),
    "fim": {"files.jsonl": lines(lambda i: {"text": f"def add_{i}(n):\n    return n + {i}\n"})},
    **dict.fromkeys(("dpo", "orpo", "simpo", "cpo"), PAIRS),
    "reward": {"harmless.jsonl": HARMLESS},
    "kto": {
        "verdicts.jsonl": lines(lambda i: {"prompt": f"What is {i}?", "completion": f"It is {i}.", "label": i % 3 > 0})
    },
    "chain-of-thought-maths": {
        "maths.jsonl": lines(lambda i: {"question": f"What is {i} + 1?", "answer": f"One more than {i}.\n#### {i + 1}"})
    },
    "distillation": {"tickets.jsonl": lines(lambda i: {"prompt": f"Ticket {i}", "completion": f"It is a {i % 5}."})},
    "grpo": {"sums.jsonl": lines(lambda i: {"question": f"What is {i} + 1?", "answer": str(i + 1)})},
    "ppo": {"tickets.jsonl": lines(lambda i: {"prompt": f"Ticket: lamp {i} is broken. Answer in JSON."})},
    "guanaco": {"oasst_ready.trees.jsonl.gz": lines(tree)},
    "instruction-tuning": {
        "alpaca_data.json": json.dumps(
            [{"instruction": f"Say {i}.", "input": "", "output": f"It is {i}."} for i in range(NUM_ROWS)]
        )
    },
    "legal-clauses": {
        "clauses.jsonl": lines(
            lambda i: {
                "task": f"t{i % 2}",
                "question": "Is it void?",
                "fields": {"text": f"Clause {i}."},
                "answer": "Yes",
            }
        )
    },
    "medical-abstracts": {
        "pubmedqa.json": json.dumps(
            {
                str(i): {
                    "QUESTION": f"Does drug {i} help?",
                    "CONTEXTS": ["It was tried.", "It helped some."],
                    "final_decision": ("yes", "no", "maybe")[i % 3],
                    "LONG_ANSWER": "It helps.",
                }
                for i in range(NUM_ROWS)
            }
        )
    },
    "multi-task": {
        name: lines(lambda i: {"prompt": f"Task {i}?", "completion": "Done."})
        for name in ("tickets.jsonl", "summaries.jsonl", "queries.jsonl")
    },
    "ner": {"train.conll": sentences(0, NUM_ROWS), "dev.conll": sentences(NUM_ROWS, 6)},
    "question-answer": {"questions.jsonl": lines(lambda i: {"question": f"Why {i}?", "answer": f"Because of {i}."})},
    "sentiment": {
        "reviews.tsv": "".join(f"The {i}. film was {'good' if i % 2 else 'bad'}.\t{i % 2}\n" for i in range(NUM_ROWS))
    },
    "summarisation": {"papers.jsonl": PAPERS},
    "text-classification": {"labelled.jsonl": lines(lambda i: {"text": f"Text {i}", "label": ("a", "b", "c")[i % 3]})},
    "text-to-sql": {
        "queries.jsonl": lines(
            lambda i: {"question": f"How many {i}?", "schema": "CREATE TABLE t (n INT)", "sql": f"SELECT {i} FROM t"}
        )
    },
    "ticket-triage": {
        "tickets.jsonl": lines(lambda i: {"prompt": f"Ticket {i}", "completion": '{"category": "billing"}'})
    },
}


def tokenizer_for(kind: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with the marks that a kind of model has."""
    tokenizer = byte_level("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
                           "{% if add_generation_prompt %}<|assistant|>{% endif %}" if kind == "decoder" else None)  # fmt: skip
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if kind == "decoder":
        tokenizer.add_tokens(
            [AddedToken(mark, special=True) for mark in ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")]
        )
    if kind == "encoder":
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    if kind == "encoder-decoder":
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        tokenizer.add_tokens([AddedToken(f"<extra_id_{index}>", special=True) for index in range(99, -1, -1)])
    return tokenizer


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a kind, with its tokenizer."""
    made: dict[str, Path] = {}
    autos: dict[str, tuple[str, Any]] = {
        "decoder": ("llama", AutoModelForCausalLM),
        "encoder": ("bert", AutoModelForMaskedLM),
        "encoder-decoder": ("t5", AutoModelForSeq2SeqLM),
    }

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            name, auto = autos[kind]
            tokenizer, config = tokenizer_for(kind), tiny_config(name)
            config.update(
                {
                    "vocab_size": len(tokenizer),
                    "max_position_embeddings": 2048,
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                    "decoder_start_token_id": tokenizer.pad_token_id,
                }
            )
            auto.from_config(config).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return folder


def kind_of_model(name: str) -> str:
    """Which kind of model a recipe names."""
    return "encoder" if "bert" in name else "encoder-decoder" if "t5" in name or "bart" in name else "decoder"


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_trains(
    name: str, tmp_path: Path, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text in ROWS[name].items():
        data = text.encode()
        (tmp_path / file).write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    text = RECIPES[name].read_text()
    for key, named in re.findall(r"^ *(model|teacher): (.*)$", text, re.MULTILINE):
        settings = yaml.safe_load(named)
        model = settings if isinstance(settings, dict) else {}
        model |= {"name": str(folder_of(kind_of_model(named))), "device": "cpu"}
        text = text.replace(f"{key}: {named}", f"{key}: {json.dumps(model)}")
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml", ["training.steps=2", "training.workers=1"])
    said: list[str] = []
    result = train_recipe(recipe, tmp_path / "run", announce=said.append, on_step=lambda metrics: None)
    assert result.steps == 2
    assert result.final_loss is not None
    assert result.best_validation_loss is not None
    assert (tmp_path / "run" / "report.md").is_file()


def test_every_shipped_recipe_has_rows_here() -> None:
    assert set(ROWS) == set(RECIPES)
    assert set(PATH_ROWS) == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_a_shipped_path_is_walked_to_its_report(name: str, tmp_path: Path, folder_of: Callable[[str], Path]) -> None:
    for file, text in PATH_ROWS[name].items():
        (tmp_path / file).write_text(text)
    parsed = parse_yaml(PATHS[name].read_text(), name)
    values = parsed.values
    values["model"] = {"name": str(folder_of("decoder")), "device": "cpu"}
    for stage in ("sft", "reward", "policy"):
        values[stage]["training"] |= {"steps": 2, "rows_per_step": 2, "workers": 1}
        values[stage]["training"].pop("epochs", None)
    values["policy"]["objective"]["max_new_tokens"] = 4
    values["compare"] = {**values.get("compare", {}), "num_prompts": 2, "safety": False}
    if isinstance(values["pairs"], dict):
        values["pairs"] |= {"num_prompts": 6, "num_answers": 3, "max_new_tokens": 24}
        # what random weights write overlaps with nothing, so that here lengths tell their answers apart
        values["pairs"]["rewards"] = [{"grader": {"type": "length", "most": 9, "margin": 9}}]
    path = read_path(Parsed(values, parsed.sources))
    outcome = walk(path, tmp_path, tmp_path / "out", announce=[].append, on_step=lambda metrics: None)
    assert "reward model" in outcome.win_rate
    assert (tmp_path / "out" / "report.md").is_file()
