import math

import numpy as np
import pytest

from luthier.evaluation.intervals import Estimate
from luthier.evaluation.measure import Comparison, Measure
from luthier.evaluation.report import smoothed, write_loss_plot, write_report
from luthier.evaluation.verdict import Evaluation
from luthier.objectives import OBJECTIVES


def line(step, **more):
    return {
        "step": step,
        "loss": 2.0 / step,
        "learned_tokens": 10,
        "real_tokens": 30,
        "seconds": 2.0,
        "tokens_per_second": 15.0,
        "lr": 1e-4,
        "peak_memory_bytes": 3 * 2**30,
        **more,
    }


def colours(path):
    """The colours of an image, white left out."""
    from matplotlib.image import imread

    pixels = imread(path)[..., :3]
    return pixels[(pixels < 0.95).any(-1)], pixels.shape


@pytest.mark.parametrize("num_steps", [0, 1, 2, 19, 20, 200])
def test_a_plot_is_drawn_for_runs_of_any_length(tmp_path, num_steps):
    metrics = [line(step) for step in range(1, num_steps + 1)]
    write_loss_plot(metrics, tmp_path / "loss.png")
    inked, shape = colours(tmp_path / "loss.png")
    assert shape == (750, 1200, 3)
    is_blue = (inked[:, 2] > 0.8) & (inked[:, 0] < 0.3)
    assert bool(is_blue.any()) == (num_steps > 0)


def test_held_out_losses_are_drawn_and_broken_ones_are_left_out(tmp_path):
    metrics = [line(1), line(2, loss=math.nan), line(3, validation_loss=1.5), line(4, validation_loss=math.inf)]
    write_loss_plot(metrics, tmp_path / "loss.png")
    inked, _ = colours(tmp_path / "loss.png")
    assert bool(((inked[:, 0] > 0.85) & (inked[:, 2] < 0.2)).any())


def test_the_same_metrics_give_the_same_bytes(tmp_path):
    metrics = [line(step) for step in range(1, 30)]
    write_loss_plot(metrics, tmp_path / "one.png")
    write_loss_plot(metrics, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_smoothing_leaves_a_constant_alone_and_calms_noise():
    np.testing.assert_allclose(smoothed([3.0] * 50, 2.0), 3.0)
    noise = np.random.default_rng(0).normal(0, 1, 500)
    calm = smoothed(noise.tolist(), 5.0)
    assert len(calm) == 500
    assert calm.std() < 0.4 * noise.std()
    np.testing.assert_allclose(smoothed([1.0, 2.0], 5.0), smoothed([2.0, 1.0], 5.0)[::-1])


def test_the_report_says_how_the_training_went(tmp_path):
    folder = tmp_path / "tickets-3"
    metrics = [line(step) for step in range(1, 21)]
    metrics[9]["validation_loss"] = 0.7
    metrics[19]["validation_loss"] = 0.9
    write_report(folder / "report.md", metrics, {"Model": "tiny", "Data": "a|b\nc.jsonl"})
    text = (folder / "report.md").read_text()
    assert text.startswith("# tickets-3\n")
    assert "| Model | tiny |" in text
    assert "| Data | a\\|b c.jsonl |" in text
    assert "20 steps in 40 s, 200 learned tokens in 600 tokens." in text
    assert "Training loss 1.500 → 0.103" in text
    assert "Held-out loss 0.900 at the end; best 0.700 after step 10." in text
    assert "15 real tokens per second" in text
    assert "Peak memory 3.00 GiB." in text
    assert "(loss.png)" in text


def test_the_report_of_a_run_without_steps_says_so(tmp_path):
    write_report(tmp_path / "report.md", [], {"Model": "tiny"})
    assert "No step was made." in (tmp_path / "report.md").read_text()


def test_the_report_holds_the_evaluation_where_there_is_one(tmp_path):
    loss = Measure(
        "loss",
        False,
        40,
        (Estimate(2.0, 1.9, 2.1), Estimate(1.0, 0.9, 1.1)),
        (Comparison(Estimate(-1.0, -1.1, -0.9), 1e-9),),
    )
    evaluation = Evaluation(("base", "tuned"), 40, (loss,), ("The first 40 of 50 rows were used.",), ())
    write_report(tmp_path / "report.md", [line(1)], {}, evaluation)
    text = (tmp_path / "report.md").read_text()
    assert "tuned is better than base on 40 rows: loss 2.000 → 1.000 (-1 [-1.1, -0.9]; no row differs)." in text
    assert "| loss | 2.000 [1.900, 2.100] | 1.000 [0.900, 1.100] | -1.000 [-1.100, -0.900] | 40 |" in text
    assert "The first 40 of 50 rows were used." in text


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_report_and_the_plot_say_what_the_loss_of_an_objective_is(tmp_path, objective, monkeypatch):
    said = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_ylabel", lambda axes, label: said.append(label))
    write_loss_plot([line(1)], tmp_path / "loss.png", objective)
    write_report(tmp_path / "report.md", [line(1)], {}, objective=objective)
    text = (tmp_path / "report.md").read_text()
    assert f"loss ({objective.loss_unit})" in said
    assert f"10 {objective.targets_are} in 30 tokens" in text
    assert f"2.000 → 2.000 {objective.loss_unit}" in text
    is_squared = objective.model_fields["kind"].default == "regression"
    is_compared = objective.takes in ("preferences", "verdicts")
    assert ("squared error" in text) == is_squared
    assert ("nats" not in text) == (is_squared or is_compared)
    assert ("learned token" in text) == (objective.takes == "text" and not objective.in_place)
