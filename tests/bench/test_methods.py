"""The bench of all methods: tasks dealt, what methods begin with, the page, and the whole of it on a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from bench.methods import BEFORE, SETTINGS, TASKS, deal, main, page
from luthier.methods import METHODS, kind_of


def messages(number: int) -> list[dict[str, str]]:
    return [{"text": f"Where is my card, number {n}?", "category": f"lost_card_{n % 8}"} for n in range(number)]


def test_no_intent_is_in_two_tasks_and_half_of_them_are_in_the_first() -> None:
    dealt = deal(messages(64))
    intents = {task: {chat["messages"][2]["content"] for chat in chats} for task, chats in dealt.items()}
    assert [len(intents[task]) for task in TASKS] == [4, 2, 2]
    assert len(set.union(*intents.values())) == 8
    assert sum(map(len, dealt.values())) == 64
    assert all("_" not in intent for intent in intents["all"])


def test_settings_are_of_methods_that_exist_and_name_runs_that_are_made() -> None:
    assert set(SETTINGS) <= set(map(kind_of, METHODS))
    named = json.dumps([*SETTINGS.values(), *BEFORE.values()]).split('"before/')[1:]
    assert {path.partition('"')[0] for path in named} == {*BEFORE}


def outcome(name: str, seed: int) -> dict[str, Any]:
    return {
        "name": name, "kind": name, "seed": seed, "num_trainable": 1234, "base_loss": 3.0, "loss": 2.5, "fall": 0.5,
        "standard_error": 0.1, "standard_errors": 5.0, "seconds": 7.2, "peak_memory_bytes": 10**9,
    }  # fmt: skip


def test_the_page_has_a_line_a_method_and_one_a_seed_where_there_are_several() -> None:
    work = {"name": "banking77", "model": "m", "budget_tokens": 10_000, "held_out_rows": 9}
    outcomes = [outcome("lora", 0), outcome("lora", 1), outcome("full", 0)]
    once, several = page({"work": work, "machine": {"processor": "2 × x"}, "outcomes": outcomes}).split(
        "several seeds:"
    )
    assert "| `full` | 1,234 | 2.500 | 0.500 ± 0.100 | 5.0 | 7 | 1.00 |" in once
    assert once.count("`lora` |") == 1
    assert several.count("`lora` |") == 2
    assert "full" not in several


def test_data_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none.csv"), "--work", str(tmp_path / "work")]) == 4
    assert "none.csv" in capsys.readouterr().err


@pytest.mark.slow
def test_a_method_that_begins_with_other_runs_is_compared(tiny_model: Path, tmp_path: Path) -> None:
    data, kept = tmp_path / "m.csv", tmp_path / "kept.json"
    with data.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("text", "category"))
        writer.writeheader()
        writer.writerows(messages(400))
    words = [
        "--data",
        str(data),
        "--model",
        str(tiny_model),
        "--budget-tokens",
        "1500",
        "--work",
        str(tmp_path / "work"),
    ]
    assert main([*words, "--results", str(kept), "--only", "adapter-fusion"]) == 0
    document = json.loads(kept.read_text())
    assert {found["kind"] for found in document["outcomes"]} == {"adapter-fusion"}
    assert "`adapter-fusion`" in page(document)
