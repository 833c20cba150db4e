"""The benches of preference and reinforcement learning: their pairs, prompts, ratios, and whole runs on a tiny model."""

from __future__ import annotations

import gzip
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bench import dpo, grpo, ppo_memory
from bench.arithmetic import bytes_a_token
from bench.clock import Lap
from bench.contest import Contestant
from bench.pairs import Pair, PairWork, first_fitting, read_pairs, read_rows, write_pairs
from bench.prepare_pairs import is_one_pair
from bench.processes import Outcome
from bench.prompts import REWARD, PromptWork, read_prompts, write_prompts
from bench.rates import Duel, rates_of, told

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}]


def pair(prompt: int, chosen: int, rejected: int) -> Pair:
    return Pair([1] * prompt, [2] * chosen, [3] * rejected)


def outcome(*seconds: float, peak: int = 100) -> Outcome:
    return Outcome(tuple(Lap(each, 2 * each, 0.0, 0, 1.0) for each in seconds), peak, 10, {}, 1)


def work_of_prompts() -> PromptWork:
    ids = ([1, 2, 3], [4, 5, 6, 7, 8])
    return PromptWork("n", "m", "a", "r", "f", 2, 1e-4, 1.0, 0, 0.0, 6, ("one", "two"), ids)


def test_pairs_are_chosen_by_their_length_and_their_prompts_share() -> None:
    pairs = [pair(9, 3, 2), pair(8, 3, 2), pair(90, 3, 2), pair(12, 4, 1)]
    assert first_fitting(pairs, 9, 20, long_prompts=False) == [0, 1, 3]
    assert first_fitting(pairs, 9, 20, long_prompts=True) == [0, 3]
    assert first_fitting(pairs, 1, 20, long_prompts=False) == [0]


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{role}: {text}" for role, text in zip(("Human", "Assistant") * 2, turns, strict=False))


@pytest.mark.parametrize(
    ("chosen", "rejected", "is_pair"),
    [
        ("b", "c", True),
        ("b", "b", False),
        (transcript("a", "b"), transcript("a", "c"), True),
        (transcript("a", "b"), transcript("a", " "), False),
        (transcript("a", "b"), transcript("a", "b", "c", "d"), False),
        (transcript("a", "b", "c", "d"), transcript("a", "b", "c", "e"), True),
        (transcript("a", "b", "c", "d"), transcript("a", "e", "c", "d"), False),
    ],
    ids=["texts", "same", "transcripts", "no-answer", "goes-on", "last-answer", "earlier-answer"],
)
def test_a_pair_is_one_prompt_with_two_answers(chosen: str, rejected: str, is_pair: bool) -> None:
    assert is_one_pair({"chosen": chosen, "rejected": rejected}) is is_pair


@pytest.mark.parametrize("form", ["json", "jsonl", "jsonl.gz"])
def test_rows_are_read_from_any_form_of_file(form: str, tmp_path: Path) -> None:
    text = json.dumps(ROWS) if form == "json" else "".join(json.dumps(row) + "\n" for row in ROWS)
    path = tmp_path / f"rows.{form}"
    path.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else text.encode())
    assert read_rows(path) == ROWS
    path.write_bytes(gzip.compress(b"[1]") if form.endswith("gz") else b"[1]")
    with pytest.raises(ValueError, match="no objects"):
        read_rows(path)


def test_work_is_read_as_it_was_written(tmp_path: Path) -> None:
    work = PairWork("n", "m", "a", "r", 2, 1e-4, 1.0, 0, (pair(6, 2, 2), pair(6, 1, 3)))
    write_pairs(tmp_path, work)
    assert read_pairs(tmp_path) == work
    assert (work.num_steps, work.prompt_over_answer) == (1, 3.0)
    write_prompts(tmp_path, work_of_prompts())
    assert read_prompts(tmp_path) == work_of_prompts()


def test_the_reward_is_a_function_that_any_trainer_can_call() -> None:
    names: dict[str, Any] = {}
    exec(REWARD, names)
    assert names["reward"](["p"] * 3, ["aea", "bcd", ""], []) == [0.75, 0.0, 0.0]


def test_a_rate_leaves_the_first_step_out_and_a_ratio_is_ours_over_theirs() -> None:
    assert rates_of(outcome(100.0, 2.0, 2.0), 8).per_second == 4.0
    assert rates_of(outcome(100.0, 2.0, 2.0), 8).per_cpu_second == 2.0
    duel = Duel((Contestant("one", "One", ""), Contestant("two", "Two", "")), "pairs", 8, 3.0)
    rounds = {"one": [outcome(1.0, 1.0, peak=50)], "two": [outcome(1.0, 4.0)]}
    document, text = told(duel, rounds)
    assert document["ratios"]["per_second"] == {"of_medians": 4.0, "lowest": 4.0, "highest": 4.0}
    assert document["ratios"]["peak_bytes"]["of_medians"] == 0.5
    assert document["contestants"]["one"] == [asdict(rounds["one"][0])]
    assert "target 3" in text


def test_lengths_are_compared_by_their_means() -> None:
    assert grpo.length_difference({"a": [60.0, 64.0], "b": [62.0]}) == 0
    assert grpo.length_difference({"a": [50.0], "b": [40.0]}) == pytest.approx(0.2)


def test_of_the_cache_only_what_is_certain_to_be_filled_is_left_out() -> None:
    work = work_of_prompts()
    tokens = ppo_memory.cached_tokens(work, 5.0)
    assert tokens == 8 + 16 * 5
    config = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
    assert bytes_a_token(config) == 2 * 3 * 2 * 8 * 4
    assert bytes_a_token({**config, "head_dim": 16}) == 2 * 3 * 2 * 16 * 4
    assert ppo_memory.ratio_without_cache([130.0, 140.0, 170.0], [100.0], 20.0) == pytest.approx(1.2)


def test_numbers_that_measure_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for read in (dpo.read_arguments, grpo.read_arguments, ppo_memory.read_arguments):
        with pytest.raises(SystemExit):
            read(["--steps", "1"])
        assert "at least 2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shared", [False, True], ids=["trl", "shared"])
def test_pairs_come_to_the_same_losses(
    shared: bool, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"What is {n} and {n}? " * 9, "chosen": f"It is {2 * n}.", "rejected": f"No, {n}."}
        for n in range(20)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), "utf-8")
    options = ["--data", str(tmp_path / "pairs.json"), "--model", str(tiny_model), "--results", str(tmp_path)]
    options += ["--rounds", "1", "--steps", "2", "--json", *(["--shared"] if shared else [])]
    assert dpo.main(options) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["losses"]["largest_difference"] < 1e-4
    assert document["work"]["pairs"] == 16
    assert document["ratios"]["per_second"]["of_medians"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_answers_of_both_are_as_long_and_memory_is_told(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"question": f"What is {n}?"}) + "\n" for n in range(9)))
    usual = ["--data", str(tmp_path / "asked.jsonl"), "--model", str(tiny_model), "--results", str(tmp_path)]
    usual += ["--rounds", "1", "--steps", "2", "--prompts-per-step", "2", "--new-tokens", "4", "--json"]
    grpo.main(usual)
    document = json.loads(capsys.readouterr().out)
    assert set(document["contestants"]) == {"luthier", "trl"}
    assert document["work"]["samples_per_step"] == 16
    assert all(0 < length <= 4 for length in document["answers"]["mean_tokens"].values())
    ppo_memory.main(usual)
    document = json.loads(capsys.readouterr().out)
    assert document["peak_bytes"]["ppo"][0] > 0
    assert document["ratio"] < document["ratio_with_cache"]
