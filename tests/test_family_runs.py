"""Every family through the doors: a run that trains an adapter, read back, asked, merged, and the merged model asked by transformers."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from models.tiny import CONFIGS, ENCODER_DECODERS, ENCODERS, VOCABULARY, plain_model
from near import assert_near
from tiny_runs import begin, course, nothing, recipe_values
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from luthier import api
from luthier.recipe.loading import recipe_of_run
from luthier.studies.exporting import export_run

LETTERS = (*map(chr, range(ord("A"), ord("Z") + 1)), *map(chr, range(ord("a"), ord("z") + 1)), *"01234")
ASKED = "lamp E2"
NUM_TOKENS = 6


def letters(*, has_mask: bool) -> PreTrainedTokenizerFast:
    """A token for each letter, and as many as the tiny models have; in the manner of GPT-2's, so that any family's class reads it."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "Ġ": 3} | {letter: 4 + place for place, letter in enumerate(LETTERS)}
    assert len(words) == VOCABULARY
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = {"mask_token": LETTERS[-1]} if has_mask else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", **marks)


def write_model(name: str, folder: Path) -> Path:
    """A tiny model of a family as it is published: a head over words, and a tokenizer."""
    plain_model(name, purpose="words").save_pretrained(folder)
    letters(has_mask=name in ENCODERS).save_pretrained(folder)
    return folder


def write_rows(name: str, path: Path) -> Path:
    """A text and its class for encoders, else a prompt and its answer."""
    rows = []
    for number in range(12):
        text = f"{('lamp', 'box', 'chair')[number % 3]} {LETTERS[number]}"
        answer = "lost" if number % 2 else "here"
        told = {"text": text, "label": answer} if name in ENCODERS else {"prompt": text, "completion": f" is {answer}"}
        rows.append(json.dumps(told) + "\n")
    path.write_text("".join(rows), encoding="utf-8")
    return path


def trained(name: str, desk: Path) -> Path:
    """A run that learned something of its rows with LoRA."""
    training = {"steps": 24, "peak_lr": 0.02, "checkpoint_every": 24}
    values = recipe_values(write_model(name, desk / "model"), write_rows(name, desk / "rows.jsonl"), training=training)
    values["data"]["max_length"] = 32
    if name in ENCODERS:
        values["objective"] = {"kind": "classification"}
    begin(values, desk / "run")
    losses = [line["loss"] for line in course(desk / "run")]
    assert mean(losses[-3:]) < mean(losses[:3])
    return desk / "run"


def merged(run: Path, out: Path) -> Path:
    """The run's model merged into one of transformers; the export compares it with the run's by itself."""
    export_run(run, recipe_of_run(run), out, nothing)
    return out


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ENCODERS])
def test_a_writer_learns_is_read_back_answers_and_is_merged(name: str, tmp_path: Path) -> None:
    run = trained(name, tmp_path)
    tuned = api.load(run)
    said = tuned.generate(ASKED, max_new_tokens=NUM_TOKENS)
    whole = merged(run, tmp_path / "merged")
    assert api.load_plain(str(whole)).generate(ASKED, max_new_tokens=NUM_TOKENS) == said
    auto: Any = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(whole)
    prompt_1T = tokenizer(ASKED, return_tensors="pt")["input_ids"]
    tokens_1T = (
        auto.from_pretrained(whole)
        .eval()
        .generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            do_sample=False,
            use_cache=False,
            max_new_tokens=NUM_TOKENS,
        )
    )
    own = tokens_1T[0, 1:] if name in ENCODER_DECODERS else tokens_1T[0, prompt_1T.shape[1] :]
    assert tokenizer.decode(own, skip_special_tokens=True) == said


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_learns_is_read_back_tells_classes_and_is_merged(name: str, tmp_path: Path) -> None:
    run = trained(name, tmp_path)
    tuned = api.load(run)
    assert isinstance(tuned, api.Classifier)
    (found,) = tuned.classify([ASKED])
    whole = merged(run, tmp_path / "merged")
    tokenizer = AutoTokenizer.from_pretrained(whole)
    plain = AutoModelForSequenceClassification.from_pretrained(whole).eval()
    logits_1K = plain(**tokenizer(ASKED, return_tensors="pt", return_token_type_ids=False)).logits.detach()
    assert_near(torch.tensor(list(found.probabilities.values())), logits_1K[0].softmax(-1))
    assert [plain.config.id2label[index] for index in range(2)] == list(found.probabilities)
