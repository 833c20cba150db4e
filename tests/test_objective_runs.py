"""Runs of objectives that do not write, through the doors: trained, asked, measured, and read by transformers and peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from near import assert_near
from peft import PeftModel
from tiny_model import write_tiny_encoder, write_tiny_model
from tiny_runs import begin, course, recipe_values
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import luthier
from luthier import api
from luthier.cli import main as program
from luthier.errors import UsageError

THINGS = ("lamp", "chair", "kettle", "radio", "box")
PLACES = ("Oslo", "Rome", "Lima")
KINDS = ("token-classification", "regression", "multiple-choice", "embedding", "mlm")
TASKS = {"token-classification": "TOKEN_CLS", "regression": "SEQ_CLS", "mlm": "FEATURE_EXTRACTION"}
AUTOS: dict[str, Any] = {
    "token-classification": AutoModelForTokenClassification,
    "regression": AutoModelForSequenceClassification,
    "mlm": AutoModelForMaskedLM,
}


def row_of(kind: str, number: int) -> dict[str, Any]:
    """A row that teaches something plain."""
    thing, place = THINGS[number % 5], PLACES[number % 3]
    match kind:
        case "token-classification":
            return {"tokens": ["The", thing, "is", "in", "New", place], "tags": ["O"] * 4 + ["B-place", "I-place"]}
        case "regression":
            return {
                "text": f"The {thing} {number} is {'broken' if number % 2 else 'lovely'}.",
                "score": number % 2 * 2.0,
            }
        case "multiple-choice":
            options = ["It is lovely.", f"The {thing} is broken."]
            return {"question": f"What of the {thing} {number}?", "choices": options, "answer": int(number % 4 > 0)}
        case "embedding":
            return {"anchor": f"Where is the {thing} {number}?", "positive": f"I look for {thing} {number}."}
        case _:
            return {"text": f"The {thing} {number} is in {place}, and the answer is {number % 7}."}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, rows of each kind, and a run of each kind with LoRA under its kind's name."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_encoder(desk / "encoder")
    for kind in KINDS:
        for name, numbers in (("rows", range(24)), ("held-out", range(100, 112))):
            lines = [json.dumps(row_of(kind, number)) + "\n" for number in numbers]
            (desk / f"{kind}-{name}.jsonl").write_text("".join(lines))
        begin(values_of(desk, kind), desk / kind)
    return desk


def values_of(desk: Path, kind: str, **parts: Any) -> dict[str, Any]:
    parts["data"] = {"max_length": 64, "validation": str(desk / f"{kind}-held-out.jsonl")}
    training = {"steps": 12, "rows_per_step": 8, "tokens_per_micro_batch": 512, "checkpoint_every": 12}
    parts["training"] = {**training, **parts.get("training", {})}
    values = recipe_values(desk / "encoder", desk / f"{kind}-rows.jsonl", **parts)
    return {**values, "objective": {"kind": kind}}


def told(desk: Path, kind: str, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """What `luthier generate RUN --json` prints."""
    assert program.main(["generate", str(desk / kind), "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


MEASURES = {
    "token-classification": ["loss", "accuracy", "entity precision", "entity recall", "entity F1"],
    "regression": ["mean squared error", "Pearson", "Spearman"],
    "multiple-choice": ["loss", "accuracy", "calibration error"],
    "embedding": ["loss", "accuracy@1", "MRR"],
    "mlm": ["loss", "perplexity", "accuracy"],
}
BESIDE = {"token-classification": "majority", "regression": "mean", "multiple-choice": "position"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_measured_as_the_loop_did_on_its_rows_and_on_a_file(
    kind: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = api.evaluate(desk / kind)
    assert [measure.name for measure in found.measures] == MEASURES[kind]
    assert found.candidates == (BESIDE.get(kind, "base"), "tuned")
    assert found.measures[0].estimates[1].value == pytest.approx(course(desk / kind)[-1]["validation_loss"], rel=1e-4)
    file = str(desk / f"{kind}-held-out.jsonl")
    assert program.main(["evaluate", str(desk / kind), "--data", file, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["measures"][0]["estimates"]["tuned"]["value"] == pytest.approx(
        found.measures[0].estimates[1].value, rel=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_stands_beside_its_run(kind: str, desk: Path) -> None:
    also = f"{desk / kind}@12"
    found = api.evaluate(desk / kind, also=[also])
    assert found.candidates == (BESIDE.get(kind, "base"), "tuned", also)
    assert found.subject == "tuned"
    for measure in found.measures:
        assert measure.estimates[1] == measure.estimates[2]  # the last checkpoint is what the run came to


@pytest.mark.parametrize("kind", ["embedding", "mlm"])
def test_another_run_is_measured_beside_a_run_as_it_is_by_itself(kind: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, kind, training={"steps": 2, "peak_lr": 1e-3}), tmp_path / "short")
    beside = api.evaluate(desk / kind, also=[str(tmp_path / "short")])
    alone = api.evaluate(tmp_path / "short", str(desk / f"{kind}-held-out.jsonl"))
    for one, other in zip(beside.measures, alone.measures, strict=True):
        assert one.estimates[::2] == other.estimates, "base and the other run"
    assert beside.measures[0].estimates[1] != beside.measures[0].estimates[2]


@pytest.mark.parametrize(
    ("kind", "does"), [("embedding", "places texts by what they mean"), ("mlm", "fills in hidden words")]
)
def test_a_model_of_another_kind_is_not_measured_beside_a_run(kind: str, does: str, desk: Path) -> None:
    with pytest.raises(UsageError, match=f"is no model that {does}: it cannot stand beside"):
        api.evaluate(desk / kind, also=[str(desk / "regression")])


def test_models_of_other_tokens_are_not_measured_beside_a_run(desk: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "decoder")
    begin(
        {**values_of(desk, "embedding", training={"steps": 1}), "model": str(tmp_path / "decoder")}, tmp_path / "texts"
    )
    added = {"name": str(desk / "encoder"), "add_tokens": ["<new>"]}
    begin({**values_of(desk, "mlm", training={"steps": 1}), "model": added}, tmp_path / "words")
    for kind, other in (("embedding", "texts"), ("mlm", "words")):
        with pytest.raises(UsageError, match="makes other tokens of a text"):
            api.evaluate(desk / kind, also=[str(tmp_path / other)])


def test_vectors_of_other_tokens_of_a_text_are_not_measured_beside_a_run(desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, "embedding", training={"steps": 1})
    begin({**values, "objective": {"kind": "embedding", "pooling": "token"}}, tmp_path / "first")
    with pytest.raises(UsageError, match="pooling token, and the rows are pooled as mean"):
        api.evaluate(desk / "embedding", also=[str(tmp_path / "first")])


def test_words_are_tagged_and_entities_stand_where_they_are_in_the_text(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = api.load(desk / "token-classification")
    assert isinstance(model, luthier.Tagger)
    text = "The lamp  is in New Oslo."
    found = model.tag(text)
    assert [word.word for word in found.words] == ["The", "lamp", "is", "in", "New", "Oslo", "."]
    assert all(entity.text in text for entity in found.entities)
    assert model.tag([word.word for word in found.words]).tags == found.tags
    (answer,) = told(desk, "token-classification", capsys, "--prompt", text)["answers"]
    assert [word["tag"] for word in answer["words"]] == list(found.tags)
    with pytest.raises(UsageError, match="no word"):
        model.tag("  ")


def test_texts_get_numbers(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = api.load(desk / "regression")
    assert isinstance(model, luthier.Scorer)
    scores = model.score(["The lamp 3 is broken.", ("The lamp 4", "is lovely.")])
    answers = told(desk, "regression", capsys, "--prompt", "The lamp 3 is broken.")["answers"]
    assert answers[0]["score"] == pytest.approx(scores[0], abs=1e-5)
    assert len(scores) == 2


def test_an_option_is_chosen_by_shares_that_do_not_depend_on_their_order(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = api.load(desk / "multiple-choice")
    assert isinstance(model, luthier.Chooser)
    options = ["It is lovely.", "The lamp is broken.", "No."]
    found, turned = model.choose("What of it?", options), model.choose("What of it?", options[::-1])
    assert sum(found.shares) == pytest.approx(1, abs=1e-5)
    assert found.shares == pytest.approx(turned.shares[::-1], abs=1e-5)
    assert found.option == options[found.index] == turned.option
    words = [word for option in options for word in ("--option", option)]
    (answer,) = told(desk, "multiple-choice", capsys, "--prompt", "What of it?", *words)["answers"]
    assert answer["option"] == found.option
    with pytest.raises(UsageError, match="two options or more"):
        model.choose("What of it?", ["one"])
    assert program.main(["generate", str(desk / "regression"), "--prompt", "a", "--option", "b"]) == 2
    assert "Leave out --option" in capsys.readouterr().err


def test_vectors_have_length_1_and_are_the_mean_of_the_states(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = api.load(desk / "embedding")
    assert isinstance(model, luthier.Embedder)
    texts = ["Where is the lamp 3?", "I look for lamp 3.", "no"]
    vectors = model.embed(texts)
    assert_near(vectors.norm(dim=1), torch.ones(3))
    found = told(desk, "embedding", capsys, *(word for text in texts for word in ("--prompt", text)))
    assert_near(torch.tensor(found["similarities"]), vectors @ vectors.T)
    base = api.base_of(desk / "embedding", model).embed(texts)
    plain = AutoModelForMaskedLM.from_pretrained(desk / "encoder").bert.eval()
    tokenizer = AutoTokenizer.from_pretrained(desk / "encoder")
    states = [plain(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
    assert_near(base, F.normalize(torch.stack(states), dim=-1).detach())


def test_tuning_a_whole_encoder_for_vectors_leaves_its_head_over_words_as_it_was(desk: Path, tmp_path: Path) -> None:
    training = {"steps": 3, "peak_lr": 1e-2, "optimizer": {"kind": "adamw", "weight_decay": 0.5}}
    begin(values_of(desk, "embedding", method={"kind": "full", "rank": None}, training=training), tmp_path / "run")
    before, after = (
        AutoModelForMaskedLM.from_pretrained(folder) for folder in (desk / "encoder", tmp_path / "run" / "model")
    )
    for name, tensor in before.cls.named_parameters():
        if "decoder.weight" not in name:  # the embedding, which trains
            assert torch.equal(after.cls.get_parameter(name), tensor)
    assert not torch.equal(
        after.bert.encoder.layer[0].output.dense.weight, before.bert.encoder.layer[0].output.dense.weight
    )


def test_masks_are_filled_with_the_likeliest_words(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = api.load(desk / "mlm")
    assert isinstance(model, luthier.Filler)
    found = model.fill("The [MASK] is in <mask>.", count=3)
    assert [len(mask) for mask in found] == [3, 3]
    plain = AutoModelForMaskedLM.from_pretrained(desk / "encoder").eval()
    tokenizer = AutoTokenizer.from_pretrained(desk / "encoder")
    inputs = tokenizer("The [MASK] is in [MASK].", return_tensors="pt")
    logits = plain(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
    base = api.base_of(desk / "mlm", model).fill("The [MASK] is in [MASK].", count=3)
    shares = torch.tensor([[filling.probability for filling in mask] for mask in base])
    assert_near(shares, logits.softmax(-1).topk(3).values.detach())
    (answer,) = told(desk, "mlm", capsys, "--prompt", "The [MASK] is in <mask>.")["answers"]
    assert [mask[0]["word"] for mask in answer["masks"]] == [mask[0].word for mask in found]
    with pytest.raises(UsageError, match="no mask"):
        model.fill("The lamp.")


@pytest.mark.parametrize("kind", KINDS)
def test_chat_is_refused_with_how_to_ask_instead(kind: str, desk: Path) -> None:
    with pytest.raises(UsageError, match="does not write") as caught:
        api.load_text(desk / kind)
    assert "--prompt" in caught.value.mend
    assert ("--option" in caught.value.mend) == (kind == "multiple-choice")


# ── other tools ─────────────────────────────────────────────────────────────────────────────────────────────────────


def said_by_ours(kind: str, model: Any) -> torch.Tensor:
    if kind == "token-classification":
        return torch.tensor([word.probability for word in model.tag("The lamp is").words])
    if kind == "regression":
        return torch.tensor(model.score(["The lamp is"]))
    return torch.tensor([filling.probability for filling in model.fill("The [MASK] is", count=4)[0]])


def said_by_theirs(kind: str, hf: Any, folder: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("The [MASK] is" if kind == "mlm" else "The lamp is", return_tensors="pt")
    logits_TC = hf.eval()(**inputs).logits[0].detach()
    if kind == "regression":
        return logits_TC
    if kind == "mlm":
        return logits_TC[inputs["input_ids"][0] == tokenizer.mask_token_id].softmax(-1).topk(4).values[0]
    words = inputs.word_ids()
    text = "The lamp is"
    firsts = [next(t for t, _ in enumerate(words) if inputs.token_to_chars(t) and inputs.token_to_chars(t).end > at)
              for at in (0, text.index("lamp"), text.rindex("is"))]  # fmt: skip
    return logits_TC[firsts].softmax(-1).max(-1).values


@pytest.mark.parametrize("kind", AUTOS)
def test_a_tuned_base_is_a_model_of_transformers(kind: str, desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, kind, method={"kind": "full", "rank": None}, training={"steps": 2, "peak_lr": 1e-3})
    begin(values, tmp_path / "run")
    hf = AUTOS[kind].from_pretrained(tmp_path / "run" / "model")
    if kind == "regression":
        assert (hf.config.num_labels, hf.config.problem_type) == (1, "regression")
    ours = said_by_ours(kind, api.load(tmp_path / "run"))
    assert_near(ours, said_by_theirs(kind, hf, tmp_path / "run" / "model"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", AUTOS)
def test_an_adapter_is_one_of_peft_for_its_task(kind: str, desk: Path) -> None:
    adapter = desk / kind / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["task_type"] == TASKS[kind]
    options = {"token-classification": {"num_labels": 3}, "regression": {"num_labels": 1}, "mlm": {}}[kind]
    hf = PeftModel.from_pretrained(AUTOS[kind].from_pretrained(desk / "encoder", **options), adapter)
    assert_near(said_by_ours(kind, api.load(desk / kind)), said_by_theirs(kind, hf, desk / "encoder"))
