from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from luthier.data.tickets import LABELS, Ticket, answer_for, generate_tickets, prompt_for
from luthier.errors import UsageError
from luthier.methods import LoRA
from luthier.store.runs import read_metrics
from luthier.studies.quickstart import QuickstartResult, mark, quickstart_recipe, run_quickstart

TICKETS = generate_tickets(40, seed=2, share="held_out")


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a ticket, which its few tokens make long."""
    folder = tmp_path_factory.mktemp("quickstart") / "tiny"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 2048}))
    return folder


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def result(model: Path, tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> QuickstartResult:
    folder = tmp_path_factory.mktemp("quickstart-run")
    return run_quickstart(
        folder, announce=said.append, on_step=lambda metrics: None, model=str(model), num_train=10, num_held_out=6
    )


def wrong(ticket: Ticket, **values: object) -> str:
    return json.dumps(json.loads(answer_for(ticket)) | values)


# ── marks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_right_answers_get_full_marks_with_intervals_that_admit_doubt():
    marks = mark([answer_for(ticket) for ticket in TICKETS], TICKETS)
    for share in (marks.valid_json, marks.field_accuracy, *marks.by_field.values()):
        assert share.value == share.high == 1
        assert 0.85 < share.low < 1
    assert marks.summary_rouge_l.value == 1


def test_answers_that_are_not_json_get_no_marks():
    marks = mark(["I am sorry to hear that."] * len(TICKETS), TICKETS)
    for share in (marks.valid_json, marks.field_accuracy, *marks.by_field.values()):
        assert share.value == share.low == 0
        assert 0 < share.high < 0.15
    assert marks.summary_rouge_l.value == 0


def test_field_accuracy_is_the_mean_over_the_four_labels():
    answers = [wrong(ticket, product="lamp", summary="Nothing.") for ticket in TICKETS[:10]]
    answers += ["no"] * 10 + [answer_for(ticket) for ticket in TICKETS[20:]]
    marks = mark(answers, TICKETS)
    assert marks.valid_json.value == 0.75
    assert marks.by_field["product"].value == 0.5
    assert marks.by_field["category"].value == marks.by_field["order_number"].value == 0.75
    assert marks.field_accuracy.value == pytest.approx(sum(marks.by_field[label].value for label in LABELS) / 4)
    assert marks.field_accuracy.low < marks.field_accuracy.value < marks.field_accuracy.high
    assert marks.summary_rouge_l.value == pytest.approx(0.5, abs=0.02)


def test_the_interval_of_field_accuracy_is_no_narrower_than_that_of_as_many_tickets():
    half = [answer_for(ticket) for ticket in TICKETS[:20]] + ["no"] * 20
    marks = mark(half, TICKETS)
    assert marks.field_accuracy == marks.valid_json


# ── the whole ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_recipe_trains_lora_of_rank_16_on_every_linear_layer_of_the_upper_two_thirds():
    method = quickstart_recipe(Path("train.jsonl"), "smollm2-135m", seed=0, num_layers=30).method
    assert isinstance(method, LoRA)
    assert (method.rank, method.targets, method.layers) == (16, "all-linear", tuple(range(10, 30)))


def test_the_files_hold_the_prompts_and_right_answers_as_chats(result: QuickstartResult):
    for file, count, share in ((result.train_file, 10, "train"), (result.held_out_file, 6, "held_out")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        tickets = generate_tickets(count, 0, share)
        assert [row["messages"][:-1] for row in rows] == [
            [message.as_dict() for message in prompt_for(ticket)] for ticket in tickets
        ]
        assert [row["messages"][-1] for row in rows] == [
            {"role": "assistant", "content": answer_for(ticket)} for ticket in tickets
        ]


def test_the_run_is_whole_and_is_where_it_is_said_to_be(result: QuickstartResult):
    assert (result.run / "adapter" / "adapter_config.json").is_file()
    assert (result.run / "report.md").is_file()
    assert read_metrics(result.run)


def test_both_models_are_marked_and_five_tickets_are_shown(result: QuickstartResult):
    assert result.num_held_out == 6
    assert [shown.ticket for shown in result.shown] == [t.text for t in generate_tickets(5, 0, "held_out")]
    assert [shown.expected for shown in result.shown] == [answer_for(t) for t in generate_tickets(5, 0, "held_out")]
    # a random model of a few thousand weights learns nothing in so few steps; only that it was asked can be seen
    assert result.base.valid_json.value == result.tuned.valid_json.value == 0
    assert all(shown.base for shown in result.shown)


def test_the_seconds_of_the_stages_are_told_apart(result: QuickstartResult):
    assert set(result.seconds) == {"tickets", "loading and saving", "training", "answers before", "answers after"}
    assert all(seconds > 0 for seconds in result.seconds.values())


def test_the_next_commands_name_the_run_and_the_held_out_file(result: QuickstartResult):
    chat, evaluate, new = result.next_commands
    assert chat == f"luthier chat {result.run} --compare"
    assert evaluate == f"luthier evaluate {result.run} --data {result.held_out_file}"
    assert new.startswith("luthier new ")


def test_the_result_is_a_json_document(result: QuickstartResult):
    document = json.loads(json.dumps(result.as_json()))
    assert document["run"] == str(result.run)
    assert document["tuned"]["valid_json"]["value"] == result.tuned.valid_json.value
    assert document["shown"][0]["tuned"] == result.shown[0].tuned
    assert document["next_commands"] == list(result.next_commands)


def test_the_lines_show_examples_table_and_commands_without_control_characters(result: QuickstartResult):
    lines = result.lines()
    assert all(line.isprintable() for line in lines)
    assert sum(line.startswith("Ticket ") for line in lines) == 5
    for name in ("valid JSON", "fields right", *LABELS, "summary"):
        assert sum(line.strip().startswith(name) for line in lines) == 1
    assert [line.strip() for line in lines[-3:]] == list(result.next_commands)


def test_a_run_folder_in_use_is_refused(result: QuickstartResult, model: Path):
    with pytest.raises(UsageError, match="not empty"):
        run_quickstart(
            result.run.parent,
            announce=lambda sentence: None,
            on_step=lambda metrics: None,
            model=str(model),
            num_train=10,
            num_held_out=6,
        )
