"""The commands on a reward model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import within
from tiny_model import write_tiny_model

from luthier.api import load_plain
from luthier.cli.main import main
from luthier.generation.settings import Sampling
from luthier.tuned import load_reward

RECIPE = """model: model
data: {train: pairs.jsonl, max_length: 64}
objective: {kind: reward}
training: {steps: 4, rows_per_step: 8, tokens_per_micro_batch: 256, workers: 1, peak_lr: 0.01}
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which `luthier train recipe.yaml --out run` has run."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "model")
    rows = [{"prompt": f"Where is {n}?", "chosen": f"It is at {n}.", "rejected": "No idea!"} for n in range(40)]
    (desk / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk / "recipe.yaml").write_text(RECIPE)
    ended = within("train", "recipe.yaml", "--out", "run", folder=desk)
    assert ended.code == 0, ended.err
    assert "--prompt QUESTION --option ANSWER" in ended.err
    return desk


def test_evaluate_shows_what_the_scores_are_like_and_draws_it(desk: Path) -> None:
    ended = within("evaluate", "run", "--plot", "reward.png", folder=desk)
    assert ended.code == 0, ended.err
    for title in ("accuracy", "Calibration", "Margins", "Length", "position"):
        assert title in ended.out
    assert (desk / "reward.png").stat().st_size > 1000


def test_generate_scores_the_options(desk: Path) -> None:
    ended = within(
        "generate", "run", "--prompt", "Where is 3?", "--option", "Here.", "--option", "No!", "--json", folder=desk
    )
    assert ended.code == 0, ended.err
    (answer,) = ended.document["answers"]
    assert [each["option"] for each in answer["scores"]] == ["Here.", "No!"]


ASK = ("generate", "model", "--prompt", "Where is 3?", "--max-new-tokens", "6")


def test_the_best_of_several_answers_is_the_one_that_a_reward_model_scores_highest(desk: Path) -> None:
    drawn = (*ASK, "--temperature", "1", "--answers", "5", "--logprobs", "0", "--json")
    every, best = within(*drawn, folder=desk), within(*drawn, "--best-by", "run", folder=desk)
    assert best.code == 0, best.err
    (answer,) = best.document["answers"]
    texts = [each["text"] for each in every.document["answers"]]
    assert len(answer["rewards"]) == len(texts) == 5
    known = [reward for reward in answer["rewards"] if reward is not None]
    assert answer["reward"] == max(known) > min(known)
    assert answer["text"] == texts[answer["rewards"].index(answer["reward"])]
    asked = load_plain(str(desk / "model"), [].append).request("Where is 3?", Sampling()).prompt
    written = tuple(each["token"] for each in answer["logprobs"])
    (score,) = load_reward(desk / "run", [].append).scores_of_tokens([asked], [written])
    assert score == pytest.approx(answer["reward"], abs=1e-4)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The answers' texts of a command, which is carried out in this process."""
    assert main([*words, "--json"]) == 0
    return [each["text"] for each in json.loads(capsys.readouterr().out)["answers"]]


def test_the_best_answers_may_be_chosen_by_a_function(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    Path("long.py").write_text("def reward(prompts, answers, rows):\n    return [len(each) for each in answers]\n")
    drawn = (*ASK, "--prompt", "Where is 4?", "--temperature", "1", "--answers", "3")
    texts = told(capsys, *drawn)
    longest = [max(texts[:3], key=len), max(texts[3:], key=len)]
    assert told(capsys, *drawn, "--best-by", "long.py") == longest


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--answers", "3", "--best-by", "run"), "nothing to choose from"),
        (("--temperature", "1", "--best-by", "run"), "nothing to choose from"),
        (("--answers", "3", "--temperature", "1", "--best-by", "no.py"), "no file no.py"),
        (("--answers", "3", "--temperature", "1", "--best-by", "none"), "none"),
    ],
)
def test_what_there_is_nothing_to_choose_by_is_refused(
    words: tuple[str, ...], fault: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    assert main([*ASK, *words]) == (2 if "nothing" in fault else 4)
    assert fault in capsys.readouterr().err
