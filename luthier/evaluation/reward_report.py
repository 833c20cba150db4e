"""What a run that learned from rewards leaves for people to read: `rewards.png`, and its lines in `report.md`.

Both are made from the run's metrics and say nothing that is not in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.store.pictures import rule, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Metrics = Sequence[Mapping[str, Any]]
_REWARD, _HELD_OUT, _KL, _LENGTH = "#2563eb", "#ea580c", "#0d9488", "#6b7280"


def has_rewards(metrics: Metrics) -> bool:
    """Whether a run learned from rewards."""
    return any("reward" in line for line in metrics)


def reward_lines(metrics: Metrics) -> list[str]:
    """The course of rewards, divergence and lengths as sentences."""
    rewards = _column(metrics, "reward")[1]
    tenth = max(1, len(rewards) // 10)
    lines = [
        f"Reward of the answers {_mean(rewards[:tenth]):.3f} → {_mean(rewards[-tenth:]):.3f} "
        f"(means of the first and last {tenth} rollouts of {len(rewards)})."
    ]
    steps, held_out = _column(metrics, "validation_reward")
    if held_out:
        best = max(range(len(held_out)), key=held_out.__getitem__)
        lines.append(
            f"Reward of the likeliest answers to held-out prompts {held_out[-1]:.3f} at the end; best {held_out[best]:.3f} after "
            f"step {steps[best]}."
        )
    if divergence := _column(metrics, "kl_of_answers")[1]:
        lines.append(f"Answers are {divergence[-1]:.2f} nats from the reference (KL, in the last rollout).")
    lengths = _column(metrics, "answer_tokens")[1]
    lines.append(f"Answers of {lengths[0]:.0f} tokens at first, {lengths[-1]:.0f} at the end.")
    return lines


def write_reward_plot(metrics: Metrics, path: Path) -> None:
    """Write a PNG: reward by step, divergence and length by step, and reward against divergence. Raises: DiskFull."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    (reward, frontier), (divergence, length) = figure.subplots(2, 2)
    _line(reward, metrics, "reward", _REWARD, "answers")
    _line(reward, metrics, "validation_reward", _HELD_OUT, "held-out prompts")
    _line(divergence, metrics, "kl_of_answers", _KL, None)
    _line(length, metrics, "answer_tokens", _LENGTH, None)
    for axes, name in ((reward, "reward"), (divergence, "KL to the reference (nats)"), (length, "tokens of an answer")):
        axes.set_ylabel(name)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    reward.legend(frameon=False)
    both = [(line["kl_of_answers"], line["reward"]) for line in metrics if {"kl_of_answers", "reward"} <= line.keys()]
    distances = [max(kl, 0.0) ** 0.5 for kl, _ in both]
    frontier.plot(distances, [worth for _, worth in both], color=_REWARD, marker="o", markersize=3, linewidth=0.8)
    frontier.set_xlabel("√KL to the reference")
    frontier.set_ylabel("reward")
    for axes in (reward, frontier, divergence, length):
        rule(axes)
    write_png(figure, path)


def _line(axes: Axes, metrics: Metrics, name: str, color: str, label: str | None) -> None:
    steps, values = _column(metrics, name)
    axes.plot(
        steps, values, color=color, linewidth=1.4, marker="o" if len(steps) < 20 else None, markersize=3, label=label
    )


def _column(metrics: Metrics, name: str) -> tuple[list[int], list[float]]:
    pairs = [(int(line["step"]), float(line[name])) for line in metrics if line.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
