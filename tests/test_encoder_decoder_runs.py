"""Runs of encoder-decoders: trained, broken off and resumed, measured and asked through the doors of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_encoder_decoder
from tiny_runs import Cut, begin, course, cut_after, go_on, outcome, recipe_values, write_rows
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from luthier import api
from luthier.errors import DataError, GateRefusal, RecipeError
from luthier.generation.settings import Sampling

KINDS = ("t5", "bart")
PROMPT = "Where is order 3, the radio?"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind, and rows."""
    desk = tmp_path_factory.mktemp("desk")
    for kind in KINDS:
        write_tiny_encoder_decoder(desk / kind, kind)
    write_rows(desk / "rows.jsonl", 12)
    write_rows(desk / "held-out.jsonl", 4, start=40)
    return desk


def values_of(desk: Path, kind: str, **parts: Any) -> dict[str, Any]:
    """A recipe with held-out rows."""
    data = {"validation": str(desk / "held-out.jsonl"), **parts.pop("data", {})}
    return recipe_values(desk / kind, desk / "rows.jsonl", data=data, **parts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_is_measured_as_the_loop_did_and_answers(kind: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, kind, training={"steps": 12}), tmp_path / "run")
    metrics = course(tmp_path / "run")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    evaluation = api.evaluate(tmp_path / "run", sampling=Sampling(max_new_tokens=4))
    assert evaluation.measures[0].estimates[1].value == pytest.approx(metrics[-1]["validation_loss"], rel=1e-4)
    tuned = api.load(tmp_path / "run")
    answer = tuned.generate(PROMPT, max_new_tokens=6)
    assert answer == "".join(tuned.stream(PROMPT, max_new_tokens=6))
    base = api.base_of(tmp_path / "run", tuned)
    assert base.generate(PROMPT, max_new_tokens=6) == api.load_plain(str(desk / kind)).generate(
        PROMPT, max_new_tokens=6
    )


def test_a_run_broken_off_and_resumed_gives_the_same_bits(desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, "t5", method={"dropout": 0.2}, training={"gradient_checkpointing": True})
    begin(values, tmp_path / "whole")

    with pytest.raises(Cut):
        begin(values, tmp_path / "broken", on_step=cut_after(3))
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_another_cut_into_micro_batches_and_more_workers_give_the_same_course(
    kind: str, desk: Path, tmp_path: Path
) -> None:
    courses = []
    for number, (tokens, workers) in enumerate(((4096, 1), (256, 2))):
        training = {"tokens_per_micro_batch": tokens, "workers": workers}
        begin(values_of(desk, kind, training=training, method={"dropout": 0.1}), tmp_path / f"{number}")
        courses.append([line["loss"] for line in course(tmp_path / f"{number}")])
    assert courses[0] == pytest.approx(courses[1], rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_tuned_model_is_one_that_transformers_loads(kind: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, kind, method={"kind": "full", "rank": None}, training={"peak_lr": 1e-3}), tmp_path / "run")
    folder = tmp_path / "run" / "model"
    ours = api.load(tmp_path / "run").generate(PROMPT, max_new_tokens=6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    said_1T = theirs.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=6, do_sample=False)
    assert ours == tokenizer.decode(said_1T[0], skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", ["prompt-tuning", "prefix-tuning"])
def test_virtual_tokens_are_no_tokens_of_the_rows(kind: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, "bart"), tmp_path / "lora")
    begin(values_of(desk, "bart", method={"kind": kind, "rank": None, "num_virtual_tokens": 4}), tmp_path / "virtual")
    counts = [
        [(line["real_tokens"], line["learned_tokens"]) for line in course(tmp_path / name)]
        for name in ("lora", "virtual")
    ]
    assert counts[0] == counts[1]
    assert api.load(tmp_path / "virtual").generate(PROMPT, max_new_tokens=3) is not None
    losses = api.evaluate(tmp_path / "virtual", sampling=Sampling(max_new_tokens=2)).measures[0].estimates
    assert losses[1].value == pytest.approx(course(tmp_path / "virtual")[-1]["validation_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "loreft", "rank": 2, "first": 2, "last": 2},
        {"kind": "unipelt", "rank": None, "prefix": {"num_virtual_tokens": 3}, "adapter": {"width": 4}},
    ],
    ids=["loreft", "unipelt"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_the_source_and_gated_prefixes_learn_and_are_measured_as_the_loop_did(
    kind: str, method: dict[str, Any], desk: Path, tmp_path: Path
) -> None:
    values = values_of(desk, kind, method=method, training={"rows_per_step": 12})  # every step sees every row
    begin(values, tmp_path / "run")
    metrics = course(tmp_path / "run")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    losses = api.evaluate(tmp_path / "run", sampling=Sampling(max_new_tokens=2)).measures[0].estimates
    assert losses[1].value == pytest.approx(metrics[-1]["validation_loss"], rel=1e-4)


def test_what_does_not_fit_is_refused_in_words(desk: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats.write_text(json.dumps({"messages": messages}) + "\n")
    with pytest.raises(RecipeError, match="no chat template"):
        begin(values_of(desk, "t5", data={"train": str(chats)}), tmp_path / "chats")
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "plain text, nothing else"}) + "\n")
    with pytest.raises(DataError, match="plain text"):
        begin(values_of(desk, "t5", data={"train": str(text)}), tmp_path / "text")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "x" * 400, "completion": "y"}) + "\n")
    room = {"train": str(long), "max_length": 1024}
    with pytest.raises(GateRefusal, match="positions serve 256"):
        begin(values_of(desk, "bart", data=room, training={"tokens_per_micro_batch": 1024}), tmp_path / "long")


def test_the_first_token_of_answers_is_found_where_transformers_keeps_it(desk: Path, tmp_path: Path) -> None:
    for file in (desk / "t5").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert api.load_plain(str(tmp_path)).language_model.answer_start == 0
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 5}))
    assert api.load_plain(str(tmp_path)).renderer.answer_start == 5
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder_start_token_id": 7}))
    assert api.load_plain(str(tmp_path)).language_model.answer_start == 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert api.load_plain(str(tmp_path)).language_model.answer_start == 0  # T5's padding token
