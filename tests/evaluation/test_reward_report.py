"""What a run that learned from rewards leaves for people."""

from __future__ import annotations

from pathlib import Path

from luthier.evaluation.reward_report import has_rewards, reward_lines, write_reward_plot

METRICS = [
    {"step": 1, "reward": 0.1, "kl_of_answers": 0.0, "answer_tokens": 20.0},
    {"step": 2},
    {"step": 3, "reward": 0.4, "kl_of_answers": 1.5, "answer_tokens": 12.0, "validation_reward": 0.5},
]


def test_the_course_is_told_in_sentences() -> None:
    lines = reward_lines(METRICS)
    assert "0.100 → 0.400" in lines[0]
    assert "of 2)" in lines[0]
    assert any("best 0.500 after step 3" in line for line in lines)
    assert any("1.50 nats" in line for line in lines)
    assert any("20 tokens at first, 12 at the end" in line for line in lines)


def test_a_run_of_rows_has_no_rewards() -> None:
    assert has_rewards(METRICS)
    assert not has_rewards([{"step": 1, "loss": 0.3}])


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    write_reward_plot(METRICS, tmp_path / "rewards.png")
    assert (tmp_path / "rewards.png").read_bytes().startswith(b"\x89PNG")
