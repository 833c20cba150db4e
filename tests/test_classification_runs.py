"""Runs that learn to tell classes apart: trained, resumed, measured, loaded and asked, on an encoder and on a decoder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from near import assert_near
from tiny_model import write_tiny_encoder, write_tiny_model
from tiny_runs import Cut, begin, cut_after, go_on, nothing, outcome, recipe_values
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier import api
from luthier.errors import DataError, RecipeError, RunMismatch, UsageError
from luthier.recipe.loading import recipe_of_run
from luthier.studies.exporting import export_run
from luthier.tuned import load_base, load_run

WORDS = {"angry": "broken", "happy": "lovely", "neutral": "ordinary"}
THINGS = ("lamp", "chair", "kettle", "radio", "box")


def write_labelled(path: Path, count: int, start: int = 0, pairs: bool = False) -> Path:
    """Write rows whose class is plain from one word; in pairs, that word is in the second text."""
    lines = []
    for number in range(start, start + count):
        label = list(WORDS)[number % 3]
        thing = THINGS[number % len(THINGS)]
        row = {"text": f"The {thing} {number} is {WORDS[label]}.", "label": label}
        if pairs:
            row = {"text": f"Parcel {number}: a {thing}.", "text_pair": f"It is {WORDS[label]}.", "label": label}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def values_of(desk: Path, model: str = "encoder", rows: str = "rows.jsonl", **parts: Any) -> dict[str, Any]:
    """A recipe of a classifier, with held-out rows."""
    parts["data"] = {"max_length": 64, "validation": str(desk / "held-out.jsonl"), **parts.get("data", {})}
    values = recipe_values(desk / model, desk / rows, **parts)
    return {**values, "objective": {"kind": "classification"}}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, a decoder, and rows with classes."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_encoder(desk / "encoder")
    write_tiny_model(desk / "decoder")
    write_labelled(desk / "rows.jsonl", 48)
    write_labelled(desk / "held-out.jsonl", 24, start=100)
    write_labelled(desk / "pairs.jsonl", 48, pairs=True)
    write_labelled(desk / "held-out-pairs.jsonl", 24, start=100, pairs=True)
    return desk


LEARNS = {"training": {"steps": 40, "rows_per_step": 12, "tokens_per_micro_batch": 512, "checkpoint_every": 20}}


@pytest.fixture(scope="module")
def lora(desk: Path) -> Path:
    """A run that learned the classes with LoRA."""
    said: list[str] = []
    begin(values_of(desk, **LEARNS), desk / "lora", announce=said.append)
    assert any("in the new head" in sentence for sentence in said)
    assert "48 labels will be learned (angry 16, happy 16, neutral 16), those between ⟦ and ⟧:" in said
    return desk / "lora"


def test_the_classes_are_settled_in_the_run_and_held_out_loss_falls(lora: Path) -> None:
    resolved = yaml.safe_load((lora / "recipe.resolved.yaml").read_text())
    assert resolved["objective"] == {"kind": "classification", "classes": ["angry", "happy", "neutral"]}
    metrics = [json.loads(line) for line in (lora / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["loss"] == pytest.approx(math.log(3), rel=0.1)
    assert metrics[-1]["validation_loss"] < 0.5


def test_a_row_whose_label_is_none_of_the_classes_is_refused_at_its_line(lora: Path, tmp_path: Path) -> None:
    rows = [{"text": "What a day", "label": "happy"}, {"text": "Hm", "label": "puzzled"}]
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"others\.jsonl, line 2.*'puzzled' is none of the classes"):
        api.evaluate(lora, str(tmp_path / "others.jsonl"))


def test_a_finished_run_is_measured_against_the_majority_class(lora: Path) -> None:
    evaluation = api.evaluate(lora)
    by_name = {measure.name: measure for measure in evaluation.measures}
    assert list(by_name) == ["loss", "accuracy", "macro-F1", "calibration error"]
    assert by_name["accuracy"].estimates[0].value == pytest.approx(1 / 3)
    assert by_name["accuracy"].estimates[1].value > 0.8
    assert "tuned is better than" in evaluation.sentences[0]
    last = json.loads((lora / "metrics.jsonl").read_text().splitlines()[-1])["validation_loss"]
    assert by_name["loss"].estimates[1].value == pytest.approx(last, rel=1e-4)


def test_classifiers_are_measured_side_by_side_where_their_classes_and_tokens_are_the_same(
    lora: Path, desk: Path
) -> None:
    begin(values_of(desk, training={"steps": 3}), desk / "short")
    also = [str(desk / "short"), f"{lora}@40"]
    evaluation = api.evaluate(lora, also=also)
    assert evaluation.candidates == ("majority", "tuned", *also)
    assert evaluation.subject == "tuned"
    loss = evaluation.measures[0]
    assert loss.estimates[1] == loss.estimates[3]
    assert loss.estimates[1].value < loss.estimates[2].value
    assert list(evaluation.outcomes) == ["tuned", *also]
    rows = [{"text": f"It is {word}.", "label": label} for label, word in (("good", "lovely"), ("bad", "broken"))] * 4
    (desk / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    begin(values_of(desk, rows="two.jsonl", data={"validation": "none"}, training={"steps": 1}), desk / "two")
    for other in (desk / "two", desk / "decoder"):
        with pytest.raises(
            UsageError, match="no model that tells classes apart, with the classes angry, happy, neutral"
        ):
            api.evaluate(lora, also=[str(other)])
    begin(values_of(desk, model="decoder", training={"steps": 1}), desk / "of-decoder")
    with pytest.raises(UsageError, match="other tokens of a text"):
        api.evaluate(lora, also=[str(desk / "of-decoder")])


def test_a_loaded_classifier_gives_labels_and_probabilities(lora: Path) -> None:
    model = api.load(lora)
    assert isinstance(model, api.Classifier)
    assert model.generate("The lamp 7 is broken.") == "angry"
    found = model.classify(["The chair 9 is lovely.", "The box 300 is ordinary."])
    assert [each.label for each in found] == ["happy", "neutral"]
    for each in found:
        assert list(each.probabilities) == ["angry", "happy", "neutral"]
        assert sum(each.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert max(each.probabilities, key=lambda name: each.probabilities[name]) == each.label
    with pytest.raises(UsageError, match="draws nothing"):
        model.generate("The lamp", temperature=1.0)
    with pytest.raises(DataError, match="the model holds 128"):
        model.classify(["word " * 200])


def test_chat_with_a_classifier_is_refused_with_the_mend(lora: Path) -> None:
    with pytest.raises(UsageError, match="does not write") as caught:
        api.load_text(lora)
    assert "luthier generate" in caught.value.mend


def test_the_base_of_a_run_has_the_same_new_head_each_time(lora: Path) -> None:
    first, second = (load_base(lora, nothing).hf.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_classifier_is_exported_with_its_head(lora: Path, tmp_path: Path) -> None:
    result = export_run(lora, recipe_of_run(lora), tmp_path / "model", nothing)
    assert result.losses is not None
    assert result.losses["written"] == pytest.approx(result.losses["run"], abs=1e-5)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert set(config["label2id"]) == set(WORDS)


def test_pairs_of_texts_are_told_apart(desk: Path) -> None:
    values = values_of(desk, rows="pairs.jsonl", data={"validation": str(desk / "held-out-pairs.jsonl")}, **LEARNS)
    begin(values, desk / "pairs")
    accuracy = api.evaluate(desk / "pairs").measures[1]
    assert accuracy.estimates[1].value > 0.8
    model = api.load(desk / "pairs")
    assert isinstance(model, api.Classifier)
    assert model.classify([("Parcel 3: a lamp.", "It is broken.")])[0].label == "angry"


@pytest.mark.parametrize("kind", ["full", "top-layers"])
def test_a_tuned_base_is_a_model_of_transformers_with_the_classes_names(kind: str, desk: Path) -> None:
    method = {"kind": kind, "rank": None}
    training = {**LEARNS["training"], "peak_lr": 0.003}
    begin(values_of(desk, method=method, training=training), desk / kind)
    assert api.evaluate(desk / kind).measures[1].estimates[1].value > 0.8
    ours = api.load(desk / kind)
    assert isinstance(ours, api.Classifier)
    assert ours.language_model.new_head == ()
    plain = AutoModelForSequenceClassification.from_pretrained(desk / kind / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(desk / kind / "model")
    text = "The kettle 5 is lovely."
    logits = plain(**tokenizer(text, return_tensors="pt")).logits[0]
    assert plain.config.id2label[int(logits.argmax())] == "happy"
    assert_near(torch.tensor(list(ours.classify([text])[0].probabilities.values())), logits.softmax(-1).detach())


def test_warp_learns_the_classes_at_a_mask_through_the_encoders_own_head_over_words(desk: Path) -> None:
    method = {"kind": "warp", "rank": None, "num_virtual_tokens": 8, "classes": ["a", "b", "c"]}
    said: list[str] = []
    values = values_of(desk, method=method, training={**LEARNS["training"], "steps": 80, "peak_lr": 0.05})
    begin(values, desk / "warp", announce=said.append)
    numbers = 8 * 32 + 3 * 32 + 3
    assert f"Method warp: {numbers} numbers train, {3 * 32 + 3} of them in the new head." in said
    assert api.evaluate(desk / "warp").measures[1].estimates[1].value > 0.8
    model = api.load(desk / "warp")
    assert isinstance(model, api.Classifier)
    assert model.generate("The lamp 7 is broken.") == "angry"
    with pytest.raises(DataError, match="the model holds 128, 9 of them virtual"):
        model.classify(["word " * 200])


def test_a_decoder_tells_classes_apart_at_its_last_token(desk: Path) -> None:
    begin(values_of(desk, model="decoder", **LEARNS), desk / "decoder-run")
    assert api.evaluate(desk / "decoder-run").measures[1].estimates[1].value > 0.8
    model = load_run(desk / "decoder-run", nothing)
    assert model.new_head == ("score",)
    assert "score.weight" in str((desk / "decoder-run" / "adapter" / "adapter_model.safetensors").read_bytes()[:9000])


@pytest.mark.parametrize("kind", ["prompt-tuning", "prefix-tuning", "warp", "ladder", "lets", "bitfit"])
def test_a_run_broken_off_and_resumed_ends_in_the_same_bits(kind: str, desk: Path) -> None:
    own = {"ladder": {"reduction": 2}, "lets": {"width": 6, "search_share": 0.3}, "bitfit": {}}
    method = {"kind": kind, "rank": None, **own.get(kind, {"num_virtual_tokens": 4})}
    values = values_of(desk, method=method)
    begin(values, desk / f"{kind}-whole")
    with pytest.raises(Cut):
        begin(values, desk / f"{kind}-cut", on_step=cut_after(5))
    go_on(desk / f"{kind}-cut")
    assert outcome(desk / f"{kind}-cut") == outcome(desk / f"{kind}-whole")
    assert load_run(desk / f"{kind}-cut", nothing).classes == ("angry", "happy", "neutral")


def test_a_run_goes_on_from_the_adapter_and_the_head_of_another(lora: Path, desk: Path) -> None:
    begin(
        values_of(desk, method={"from": str(lora), "rank": None}, training={"steps": 1, "peak_lr": 1e-6}), desk / "on"
    )
    assert api.evaluate(desk / "on").measures[1].estimates[1].value > 0.8


def test_other_rows_than_the_run_began_with_are_refused_on_resuming(desk: Path) -> None:
    values = values_of(desk, data={"train": str(write_labelled(desk / "changing.jsonl", 18))})
    with pytest.raises(Cut):
        begin(values, desk / "changed", on_step=cut_after(5))
    write_labelled(desk / "changing.jsonl", 18, start=50)
    with pytest.raises(RunMismatch):
        go_on(desk / "changed")


def test_what_has_no_place_is_refused_before_a_step(desk: Path) -> None:
    writer = {**values_of(desk), "objective": {"kind": "sft"}}
    with pytest.raises(RecipeError, match="cannot write"):
        begin(writer, desk / "writer")
    with pytest.raises(RecipeError, match="fill no masks"):
        begin(values_of(desk, model="decoder", method={"kind": "warp", "rank": None}), desk / "decoder-warp")
