"""Runs of the objectives of pre-training, through the command: trained, measured as the loop did, and asked as they learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import write_tiny_encoder, write_tiny_encoder_decoder, write_tiny_model
from tiny_runs import begin, course, recipe_values

from luthier import api
from luthier.cli import main as program
from luthier.data.packing import collate
from luthier.evaluation.pretraining import ANSWERED
from luthier.generation.rows import PromptRows
from luthier.generation.settings import Sampling
from luthier.studies.evaluating import rows_to_evaluate
from luthier.types import Example

PLACES = ("Oslo", "Rome", "Lima")
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(24))
MODES = ("[NLU]", "[NLG]", "[S2S]")
FIM = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")

RUNS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "clm": ("decoder", {"kind": "clm"}, ()),
    "fim": ("decoder", {"kind": "fim", "rate": 0.8}, FIM),
    "prefix-lm": ("decoder", {"kind": "prefix-lm"}, ()),
    "prefix-lm-t5": ("t5", {"kind": "prefix-lm"}, ()),
    "ul2": ("decoder", {"kind": "ul2"}, (*MODES, *SENTINELS)),
    "ul2-t5": ("t5", {"kind": "ul2"}, ()),
    "span-corruption": ("t5", {"kind": "span-corruption"}, ()),
    "denoising": ("bart", {"kind": "denoising"}, ()),
    "mlm": ("encoder", {"kind": "mlm"}, ()),
}
"""The model, the objective, and the tokens that are added to the model."""
READ_AND_WRITTEN = ("prefix-lm", "prefix-lm-t5", "ul2", "ul2-t5", "span-corruption", "denoising")
PROMPTS = {
    "fim": "<fim_prefix>The lamp <fim_suffix>Rome.<fim_middle>",
    "ul2": "The <extra_id_0> is in <extra_id_1>.",
    "ul2-t5": "[NLG] The <extra_id_0> is in",
    "span-corruption": "The <extra_id_0> is in <extra_id_1>.",
    "denoising": "The <mask> is in Rome.",
    "mlm": "The [MASK] is in Rome.",
}


def write_texts(path: Path, numbers: range) -> Path:
    texts = (f"The lamp {number} is in {PLACES[number % 3]}. It costs {number * 7 % 50}." for number in numbers)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind, texts, and a run of each objective under its name."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "decoder")
    write_tiny_encoder_decoder(desk / "t5", "t5", (*MODES, *SENTINELS))
    write_tiny_encoder_decoder(desk / "bart", "bart", ("<mask>",))
    write_tiny_encoder(desk / "encoder")
    write_texts(desk / "rows.jsonl", range(24))
    write_texts(desk / "held-out.jsonl", range(100, 112))
    for name in RUNS:
        begin(values_of(desk, name), desk / "runs" / name)
    return desk


def values_of(desk: Path, name: str, **parts: Any) -> dict[str, Any]:
    model, objective, added = RUNS[name]
    parts.setdefault("data", {"max_length": 96, "validation": str(desk / "held-out.jsonl")})
    training = {"steps": 10, "rows_per_step": 8, "tokens_per_micro_batch": 512, "checkpoint_every": 10}
    parts["training"] = {**training, **parts.get("training", {})}
    values = recipe_values(desk / model, desk / "rows.jsonl", **parts)
    if added:
        values["model"] = {"name": str(desk / model), "add_tokens": list(added)}
    return {**values, "objective": objective}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_and_is_measured_as_the_loop_did(
    name: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = course(desk / "runs" / name)
    assert metrics[-1]["validation_loss"] < metrics[0]["loss"]
    assert program.main(["evaluate", str(desk / "runs" / name), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [measure["name"] for measure in found["measures"]] == ["loss", "perplexity", "accuracy"]
    estimates = found["measures"][0]["estimates"]
    assert estimates["tuned"]["value"] == pytest.approx(metrics[-1]["validation_loss"], rel=1e-4)
    assert estimates["tuned"]["value"] < estimates["base"]["value"]
    assert bool(found["answers"]) == (name in READ_AND_WRITTEN)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "mlm"])
def test_a_run_answers_through_the_command_piece_by_piece_and_whole(
    name: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", str(desk / "runs" / name), "--prompt", PROMPTS.get(name, "The lamp"), "--max-new-tokens", "12"]
    assert program.main(words) == 0
    streamed = capsys.readouterr().out
    assert program.main([*words, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["text"] + "\n" == streamed
    assert answer["tokens"] >= 1


def test_the_command_trains_and_shows_what_was_to_be_written(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(json.dumps(values_of(desk, "span-corruption", training={"steps": 2})))
    assert program.main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert program.main(["evaluate", str(tmp_path / "run"), "--max-new-tokens", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("perplexity") for line in lines)
    assert next(line for line in lines if line.startswith("  reference: ")).startswith("  reference: <extra_id_0>")


# ── how prompts are read ────────────────────────────────────────────────────────────────────────────────────────────


def held_out_of(desk: Path, name: str) -> Example:
    """A held-out row as the run measures it."""
    run = desk / "runs" / name
    return rows_to_evaluate(api.recipe_of_run(run), None, api.load(run), lambda text: None).examples[0]


@pytest.mark.parametrize("name", ["prefix-lm", "ul2"])
def test_an_answer_is_as_likely_in_generation_as_in_training(name: str, desk: Path) -> None:
    tuned, row = api.load_text(desk / "runs" / name), held_out_of(desk, name)
    model = tuned.language_model
    expected_N = model.forward(collate([row], model.layout, model.pad_id), tuned.adapter).logprob_N.detach()
    prompt = tuple(row.parts[0].tokens_T.tolist())
    rows = PromptRows(model, [prompt], tuned.adapter, causal=tuned.asking.causal)
    token_N = torch.from_numpy(row.token_N)
    scores_NV = torch.cat([rows.first_scores(), *(rows.next_scores(token[None]) for token in token_N[:-1])])
    found_N = scores_NV.log_softmax(-1).gather(-1, token_N[:, None])[:, 0]
    torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-4)


def test_a_prompt_has_the_tokens_of_the_objectives_inputs(desk: Path) -> None:
    names = ("ul2", "ul2-t5", "span-corruption", "prefix-lm-t5")
    decoder, t5, spans, prefix = (api.load_text(desk / "runs" / name) for name in names)

    def read(model: api.TextModel, prompt: str) -> str:
        request = model.request(prompt, api.make_sampling({}))
        return str(model.language_model.tokenizer.decode(request.prompt))

    end = decoder.language_model.tokenizer.eos_token
    assert read(decoder, "The <extra_id_0>.") == f"[NLU]The <extra_id_0>.{end}"
    assert read(decoder, "The lamp") == f"[S2S]The lamp{end}"
    assert read(decoder, "[NLG] The lamp") == read(decoder, "[NLG]The lamp") == f"[NLG]The lamp{end}"
    assert read(t5, "The lamp") == "[S2S]The lamp</s>"
    assert read(spans, "The <extra_id_0>.") == "The <extra_id_0>.</s>"
    assert read(prefix, "The lamp") == "The lamp</s>"
    row = held_out_of(desk, "ul2")
    assert row.parts[0].tokens_T[-1] == decoder.language_model.tokenizer.eos_token_id


def test_pieces_of_one_text_count_as_one_row(desk: Path, tmp_path: Path) -> None:
    words = "The lamp on the table is red and the chair beside it is blue, said the man who came in. "
    texts = [words * (1 + row % 3) for row in range(12)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run = desk / "runs" / "clm"
    pieces = rows_to_evaluate(api.recipe_of_run(run), str(tmp_path / "long.jsonl"), api.load(run), lambda text: None)
    assert len(pieces.examples) > 12
    found = api.evaluate(run, str(tmp_path / "long.jsonl"))
    assert found.num_rows == 12
    assert {measure.num_rows for measure in found.measures} == {12}
    assert any(f"in {len(pieces.examples)} pieces of 12 texts" in note for note in found.notes)


# ── how answers are shown ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_answer_says_which_span_is_which(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = {"steps": 30, "rows_per_step": 24, "peak_lr": 0.03, "tokens_per_micro_batch": 2048}
    values = values_of(desk, "span-corruption", training={**training, "checkpoint_every": 30})
    begin({**values, "method": {"kind": "full"}}, tmp_path / "run")
    words = ["generate", str(tmp_path / "run"), "--prompt", "The lamp <extra_id_0>", "--max-new-tokens", "5"]
    assert program.main(words) == 0
    streamed = capsys.readouterr().out
    assert streamed.startswith("<extra_id_0>"), "the first thing that it writes is which span it is of"
    assert api.load_text(tmp_path / "run").generate(words[3], max_new_tokens=5) + "\n" == streamed
    found = api.evaluate(tmp_path / "run")
    assert all(answer.answers[1].startswith("<extra_id_0>") for answer in found.answers)


@pytest.mark.parametrize("name", ["span-corruption", "ul2-t5", "ul2"])
def test_an_evaluation_shows_marks_in_what_was_asked_and_in_the_reference(name: str, desk: Path) -> None:
    found = api.evaluate(desk / "runs" / name)
    with_spans = [answer for answer in found.answers if "<extra_id_0>" in answer.asked]
    assert with_spans
    assert all(answer.reference.startswith("<extra_id_0>") for answer in with_spans)
    if name != "span-corruption":
        assert all(answer.asked.startswith(MODES) for answer in found.answers)


@pytest.mark.parametrize("name", sorted(READ_AND_WRITTEN))
def test_measures_of_answers_are_of_all_rows_and_answers_to_look_at_of_a_few(name: str, desk: Path) -> None:
    sampling = Sampling(max_new_tokens=2)
    few, every = (
        api.evaluate(desk / "runs" / name, sampling=sampling, metrics=metrics).answers for metrics in ((), ("rouge-l",))
    )
    assert len(few) == ANSWERED < len(every) == 12
    assert every[: len(few)] == few
