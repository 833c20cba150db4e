"""Weights of rows and of answers: where they come from, what they are in the loss, and who refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from form_rows import fault_of, records_of, rows_of
from objectives.rendered import ORIGIN
from small_tokenizers import CHATML, byte_level
from token_sets import loaded, small_limits

from luthier.data.dataset import Dataset, load_dataset
from luthier.data.formats import to_records
from luthier.data.gate import check_gate
from luthier.data.rendering import build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import DataError, GateRefusal
from luthier.objectives import DPO, MLM, SFT, Classification, Objective, Regression
from luthier.objectives.likelihood import nll_sum
from luthier.prepared import asked_of
from luthier.types import (
    Completion,
    Conversation,
    Gives,
    Labelled,
    Message,
    PlainText,
    Record,
    Rendered,
    Scored,
    Tagged,
)

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", "weight": 0.5}]
TURNS += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No", "weight": 2}]


def rendered(record: Record, **values: Any) -> Rendered:
    return build_renderer(DataSettings(train="rows", **values), byte_level(CHATML)).render(record)


def dataset_of(folder: Path, rows: list[dict[str, Any]], objective: Objective, **values: Any) -> Dataset:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = DataSettings(train=str(file), **{"validation": "none", **values})
    return load_dataset(settings, byte_level(CHATML), objective.example, lambda text: None, asked=asked_of(objective))


# ── where they come from ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("row", "takes", "record"),
    [
        ({"prompt": "a", "completion": "b"}, "text", Completion("a", "b", weight=0.5)),
        ({"text": "a"}, "text", PlainText("a", 0.5)),
        ({"text": "a", "label": "b"}, "labels", Labelled("a", None, "b", 0.5)),
        ({"text": "a", "score": 3}, "scores", Scored("a", None, 3.0, 0.5)),
        ({"tokens": ["a"], "tags": ["b"]}, "tags", Tagged(("a",), ("b",), 0.5)),
    ],
)
@pytest.mark.parametrize("weight", [0.5, "0.5"])
def test_a_column_of_weights_is_read_beside_any_form(
    row: dict[str, Any], takes: Gives, record: Record, weight: object
) -> None:
    assert records_of({**row, "weight": weight}, takes=takes) == [record]
    found = notes_of({**row, "Weight": weight}, takes)
    assert "Weight says how much a row counts in the loss." in found


def notes_of(row: dict[str, Any], takes: Gives) -> tuple[str, ...]:
    return to_records(rows_of(row), "auto", takes).notes


def test_a_row_without_a_weight_counts_1_and_a_column_of_something_else_is_ignored() -> None:
    row = {"prompt": "a", "completion": "b"}
    without = [Completion("a", "b")]
    assert records_of({**row, "weight": 2}, row, {**row, "weight": None})[1:] == without * 2
    assert records_of({**row, "weight": "3 kg"}) == without
    assert "Ignored columns: weight." in notes_of({**row, "weight": "3 kg"}, "text")


@pytest.mark.parametrize("weight", [-1, float("nan"), "much", [1]])
def test_a_weight_that_is_none_is_a_fault(weight: object) -> None:
    row = {"prompt": "a", "completion": "b"}
    fault = fault_of({**row, "weight": 1}, {**row, "weight": weight})
    assert fault.field == "weight"


def test_answers_of_a_chat_have_weights_of_their_own() -> None:
    (chat,) = records_of({"messages": TURNS})
    (turned,) = records_of(
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"],
                            **({"weight": turn["weight"]} if "weight" in turn else {})} for turn in TURNS]}
    )  # fmt: skip
    for found in (chat, turned):
        assert isinstance(found, Conversation)
        answers = [each for each in found.messages if each.role == "assistant"]
        assert [(each.learn, each.weight) for each in answers] == [(True, 0.5), (True, 2.0)]


# ── in the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_answers_tokens_have_its_weight_times_the_rows() -> None:
    (record,) = records_of({"messages": TURNS, "weight": 3})
    (alike,) = records_of({"messages": [{**turn, "weight": 1} if "weight" in turn else turn for turn in TURNS]})
    weights, ones = rendered(record).weight_T, rendered(alike).weight_T
    assert weights.dtype == np.float32
    assert ((weights > 0) == (ones > 0)).all()
    first, second = np.split(weights[weights > 0], [int((np.diff(np.flatnonzero(ones)) > 1).argmax()) + 1])
    assert set(first.tolist()) == {1.5}
    assert set(second.tolist()) == {6.0}


def test_weights_of_0_and_1_are_what_no_weight_and_not_learning_are() -> None:
    (weighed,) = records_of({"messages": [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[2], {**TURNS[3], "weight": 1}]})
    said = tuple(Message(turn["role"], turn["content"]) for turn in TURNS)
    plain = Conversation((said[0], Message("assistant", "Yes", learn=False), said[2], said[3]))
    for learn in ("answers", "all"):
        assert rendered(weighed, learn=learn).weight_T.tobytes() == rendered(plain, learn=learn).weight_T.tobytes()


def test_the_loss_of_weighed_rows_is_the_weighted_mean_of_their_tokens_losses(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", "completion": "one two", "weight": 0.25}]
    rows += [{"prompt": "b", "completion": "three"}, {"prompt": "c", "completion": "four", "weight": 3}]
    examples = dataset_of(tmp_path, rows, SFT()).train
    generator = torch.Generator().manual_seed(0)
    logprobs = [-torch.rand(len(example.weight_N), generator=generator) for example in examples]
    weight_N = torch.cat([torch.from_numpy(example.weight_N) for example in examples])
    loss = nll_sum(torch.cat(logprobs), weight_N) / weight_N.sum()
    weights = [row.get("weight", 1.0) for row in rows]
    above = sum(weight * -float(each.sum()) for weight, each in zip(weights, logprobs, strict=True))
    below = sum(weight * len(each) for weight, each in zip(weights, logprobs, strict=True))
    assert float(loss) == pytest.approx(above / below, rel=1e-6)


def test_pieces_of_a_long_text_weigh_as_the_text_and_answers_of_an_encoder_decoder_as_their_row(tmp_path: Path) -> None:
    rows = [{"text": "one two three four five six seven " * 5, "weight": 0.5}]
    examples = dataset_of(tmp_path, rows, SFT(), too_long="split", max_length=16).train
    assert len(examples) > 2
    assert {weight for example in examples for weight in example.weight_N.tolist()} == {0.5}
    renderer = build_renderer(DataSettings(train="rows"), byte_level(adds_bos=True), answer_start=5)
    answer = renderer.render(Completion("a", "b", weight=0.5)).weight_T
    assert answer.tolist() == [0.0] + [0.5] * (len(answer) - 1)


def test_labels_and_numbers_count_as_their_rows_say() -> None:
    labelled = rendered(Labelled("hello", None, "b", 0.5))
    assert Classification(classes=("a", "b")).example(labelled, 0, ORIGIN).weight_N.tolist() == [0.5]
    scored = rendered(Scored("hello", None, 2.0, 3.0))
    assert Regression().example(scored, 0, ORIGIN).weight_N.tolist() == [3.0]


def test_a_set_that_is_kept_has_the_weights_of_one_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_limits(tmp_path, monkeypatch)
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"a {i}", "completion": "one", "weight": 0.5 + i} for i in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made = loaded(str(file), cache_gb=0)
    kept = [loaded(str(file)) for _ in range(2)]
    assert list(folder.iterdir())
    for each in kept:
        assert list(each.train_records) == list(made.train_records)
        for one, other in zip(each.train, made.train, strict=True):
            assert one.weight_N.tobytes() == other.weight_N.tobytes()


def test_references_are_kept_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(tmp_path, monkeypatch)
    file = tmp_path / "rows.jsonl"
    rows = [{"source": [f"Text {i}."], "target": ["First.", f"Other {i}."]} for i in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for _ in range(2):
        records = list(loaded(str(file)).train_records)
        assert all(isinstance(record, Completion) and record.others for record in records)


# ── who refuses them ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_objective_that_counts_all_alike_refuses_weights_with_the_mend(tmp_path: Path) -> None:
    texts = [{"text": "hello there"}, {"text": "hello again", "weight": 0.5}]
    with pytest.raises(DataError, match="counts all rows and answers alike") as refused:
        dataset_of(tmp_path, texts, MLM())
    assert (refused.value.line, refused.value.field) == (2, "weight")
    assert "set objective.kind" in refused.value.mend
    dataset_of(tmp_path, [{**row, "weight": 1} for row in texts], MLM())
    pairs = {"chosen": TURNS, "rejected": [*TURNS[:3], {"role": "assistant", "content": "Never"}]}
    with pytest.raises(DataError, match="the weight 2"):
        dataset_of(tmp_path, [pairs], DPO())
    fault = fault_of(
        {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 1},
        {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 2},
        "preferences",
    )
    assert (fault.field, "counts them all alike" in fault.found) == ("weight", True)


def test_a_weight_beside_prompts_is_left_to_what_grades() -> None:
    assert len(records_of({"prompt": "a", "weight": 3}, takes="prompts")) == 1


def test_rows_of_weight_0_teach_nothing_and_the_gate_says_so(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [{"prompt": "a", "completion": "b", "weight": 0}], SFT())
    with pytest.raises(GateRefusal, match="Nothing in this row would be learned"):
        check_gate(dataset)
