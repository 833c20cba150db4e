"""Reward models as runs: trained in each way, read by other libraries, scored, set beside a policy, and evaluated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from near import assert_near
from tiny_model import write_tiny_encoder, write_tiny_model
from tiny_runs import Cut, begin, course, cut_after, go_on, nothing, outcome, recipe_values
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier import api, run
from luthier.data.packing import collate
from luthier.errors import DataError, UsageError
from luthier.methods import LoRA
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.prediction.reward import RewardScorer
from luthier.prediction.scale import FILE, read_scale, write_scale
from luthier.prepared import announce_gate, check_recipe
from luthier.recipe import make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.run import train_recipe
from luthier.store.files import read_json
from luthier.store.runs import PLAN
from luthier.studies.exporting import export_run
from luthier.tuned import load_base, load_reward
from luthier.types import Batch, Completion, Conversation, Example, Message, Origin, Part

HEAD_ONLY = {"method": {"kind": "full", "rank": None, "layers": []}}
WAYS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"method": {"kind": "full", "rank": None}, "training": {"peak_lr": 0.003}},
    "head only": {**HEAD_ONLY, "training": {"peak_lr": 0.1}},
}


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    """The polite answer is the better one; every third row says by how much, every seventh is a tie."""
    rows = []
    for n in range(start, start + count):
        row: dict[str, Any] = {
            "prompt": f"Where is order {n}?",
            "chosen": f"Order {n} is on its way, thank you.",
            "rejected": "No idea" + "!" * (n % 3 + 1),
        }
        rows.append(row | ({"margin": 0.5} if n % 3 == 0 else {}) | ({"probability": 0.5} if n % 7 == 6 else {}))
    return rows


def rankings(count: int) -> list[dict[str, Any]]:
    texts = ["It is on its way, thank you.", "It is lost.", "No idea!"]
    return [
        {"prompt": f"Where is order {n}?", "answers": texts[: 2 + n % 2], "ranks": [1, 2, 3][: 2 + n % 2]}
        for n in range(count)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, an encoder, pairs and rankings, and held-out pairs."""
    desk = tmp_path_factory.mktemp("desk")
    write_tiny_model(desk / "decoder")
    write_tiny_encoder(desk / "encoder")
    write_lines(desk / "pairs.jsonl", pairs(24))
    write_lines(desk / "rankings.jsonl", rankings(12))
    write_lines(desk / "held-out.jsonl", pairs(12, 100))
    return desk


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plot takes longer than the training."""
    monkeypatch.setattr(run, "write_loss_plot", lambda *arguments: None)


def values_of(desk: Path, model: str = "decoder", rows: str = "pairs", **parts: Any) -> dict[str, Any]:
    objective = parts.pop("objective", {})
    parts["data"] = {"validation": str(desk / "held-out.jsonl"), "max_length": 128}
    parts["training"] = {"steps": 16, "evaluate_every": 8, **parts.get("training", {})}
    values = recipe_values(desk / model, desk / f"{rows}.jsonl", **parts)
    return {**values, "objective": {"kind": "reward", **objective}}


@pytest.fixture(scope="module")
def tuned(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA run on the decoder."""
    folder = tmp_path_factory.mktemp("runs") / "reward"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_loss_plot", lambda *arguments: None)
        begin(values_of(desk), folder)
    return folder


CHATS = [
    Conversation((Message("user", "Where is order 3?"), Message("assistant", "On its way, thank you."))),
    Conversation((Message("user", "Where is order 3?"), Message("assistant", "No idea!!"))),
    Conversation((Message("user", "Is it lost?"), Message("assistant", "No."))),
]


def scorer_of(folder: Path) -> RewardScorer:
    loaded = api.load(folder, nothing)
    assert isinstance(loaded, RewardScorer)
    return loaded


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["decoder", "encoder"])
@pytest.mark.parametrize("way", WAYS)
def test_a_reward_model_learns_to_rank(way: str, model: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, model, **WAYS[way]), tmp_path / "run")
    lines = course(tmp_path / "run")
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=0.15)
    held_out = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert held_out[-1] < math.log(2) - 0.1
    assert {"reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward"} <= set(lines[-1])
    scorer = scorer_of(tmp_path / "run")
    polite, rude = scorer.scores(
        [Completion("Where is order 5?", text) for text in ("Order 5 is on its way, thank you.", "No idea!")]
    )
    assert polite > rude


def test_rows_are_shown_with_the_places_of_their_answers(desk: Path) -> None:
    said: list[str] = []
    announce_gate(check_recipe(make_recipe(values_of(desk, rows="rankings")), nothing).gate, said.append)
    assert any(sentence.startswith("30 answers of 12 rows will be ranked") for sentence in said)
    assert "It is on its way, thank you.<|im_end|> → ⟦place 1⟧\nIt is lost.<|im_end|> → ⟦place 2⟧\n" in said[-3]


def test_only_the_head_trains_where_no_layer_is_named(desk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    begin(values_of(desk, **WAYS["head only"]), tmp_path / "run", announce=said.append)
    assert any("32 numbers train" in sentence for sentence in said)


@pytest.mark.parametrize("ranking", ["pairs", "plackett-luce", "best-of"])
def test_rankings_are_learned_from(ranking: str, desk: Path, tmp_path: Path) -> None:
    begin(values_of(desk, rows="rankings", objective={"ranking": ranking}), tmp_path / "run")
    lines = course(tmp_path / "run")
    assert lines[-1]["loss"] < lines[0]["loss"]
    found = api.evaluate(tmp_path / "run", str(desk / "rankings.jsonl"))
    assert found.measures[0].estimates[1].value > 0.6


def test_a_run_that_is_resumed_ends_in_the_same_bits(desk: Path, tmp_path: Path) -> None:
    values = values_of(desk, training={"steps": 6})
    begin(values, tmp_path / "unbroken")
    with pytest.raises(Cut):
        begin(values, tmp_path / "broken", on_step=cut_after(3))
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "unbroken")
    kept = [read_scale(tmp_path / name / "adapter") for name in ("broken", "unbroken")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("way", ["lora", "full"])
def test_such_a_run_is_planned(way: str, desk: Path, tmp_path: Path) -> None:
    recipe = make_recipe(values_of(desk, **{**WAYS[way], "training": {"steps": 1}}))
    train_recipe(recipe, tmp_path / "run", announce=nothing, on_step=nothing, plans=True)
    assert read_json(tmp_path / "run" / PLAN)["verdict"] == "fits"


def test_ties_teach_no_other_objective(desk: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the better one") as refused:
        begin({**values_of(desk), "objective": {"kind": "dpo"}}, tmp_path / "run")
    assert refused.value.line == 7


# ── files that others read ──────────────────────────────────────────────────────────────────────────────────────────


def logits_of(hf: Any, scorer: RewardScorer, chat: Conversation) -> torch.Tensor:
    """What transformers gives for a chat as its own tokenizer writes it, up to the end of the answer."""
    tokenizer = AutoTokenizer.from_pretrained(scorer.language_model.identity.name)
    text = tokenizer.apply_chat_template([turn.as_dict() for turn in chat.messages], tokenize=False).rstrip()
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    padded = torch.cat([ids, torch.full((1, 3), tokenizer.pad_token_id)], 1)
    mask = (torch.arange(padded.shape[1]) < ids.shape[1]).long()[None]
    with torch.no_grad():
        return hf.eval()(input_ids=padded, attention_mask=mask).logits[0]


def test_peft_and_transformers_give_the_same_scores(desk: Path, tuned: Path) -> None:
    from peft import PeftModel

    scorer = scorer_of(tuned)
    base = AutoModelForSequenceClassification.from_pretrained(desk / "decoder", num_labels=1)
    theirs = PeftModel.from_pretrained(base, str(tuned / "adapter"))
    found = torch.tensor(scorer.raw_scores(CHATS))
    assert_near(found, torch.cat([logits_of(theirs, scorer, chat) for chat in CHATS]))


def test_a_whole_model_and_a_merged_one_are_read_by_transformers(desk: Path, tuned: Path, tmp_path: Path) -> None:
    begin(values_of(desk, **WAYS["full"]), tmp_path / "full")
    export_run(tuned, recipe_of_run(tuned), tmp_path / "merged", nothing)
    for folder, source in ((tmp_path / "full" / "model", tmp_path / "full"), (tmp_path / "merged", tuned)):
        theirs = AutoModelForSequenceClassification.from_pretrained(folder)
        assert theirs.config.num_labels == 1
        scorer = scorer_of(source)
        found = torch.tensor(scorer.raw_scores(CHATS))
        assert_near(found, torch.cat([logits_of(theirs, scorer, chat) for chat in CHATS]))
    assert read_json(tmp_path / "merged" / FILE) == read_json(tuned / "adapter" / FILE)


# ── the scorer ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_held_out_scores_have_mean_0_and_deviation_1(desk: Path, tuned: Path, tmp_path: Path) -> None:
    scorer = scorer_of(tuned)
    rows = pairs(12, 100)
    answers = [Completion(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    told = torch.tensor(scorer.scores(answers))
    assert_near(1 + told.mean(), torch.tensor(1.0))
    assert_near(told.std(unbiased=False), torch.tensor(1.0))
    assert scorer.scale.answers == 24
    begin(values_of(desk, objective={"normalise": "chosen"}), tmp_path / "chosen")
    best = [*answers[::2], *(Completion(row["prompt"], row["rejected"]) for row in rows if "probability" in row)]
    told = torch.tensor(scorer_of(tmp_path / "chosen").scores(best))
    assert_near(1 + told.mean(), torch.tensor(1.0))
    begin(values_of(desk, objective={"normalise": "none", "clip": 0.001}), tmp_path / "none")
    cut = scorer_of(tmp_path / "none")
    assert (cut.scale.gain, cut.scale.bias) == (1, 0)
    assert max(map(abs, cut.scores(answers))) <= 0.001


def test_a_scale_may_come_from_answers_of_ones_own_and_be_kept(tuned: Path, tmp_path: Path) -> None:
    scorer = scorer_of(tuned).normalised_on(CHATS)
    told = torch.tensor(scorer.scores(CHATS))
    assert_near(1 + told.mean(), torch.tensor(1.0))
    assert_near(told.std(unbiased=False), torch.tensor(1.0))
    write_scale(scorer.scale, tmp_path)
    assert read_scale(tmp_path) == scorer.scale
    with pytest.raises(UsageError, match="do not differ"):
        scorer.normalised_on(CHATS[:1])
    (tmp_path / FILE).write_text('{"gain": 0}')
    with pytest.raises(UsageError, match="gain"):
        read_scale(tmp_path)


def test_scores_do_not_depend_on_what_is_scored_beside_them(tuned: Path) -> None:
    scorer = scorer_of(tuned)
    together = torch.tensor(scorer.raw_scores(CHATS))
    assert_near(together, torch.tensor([scorer.raw_scores([chat])[0] for chat in CHATS]))
    assert_near(together, torch.tensor(scorer.raw_scores(CHATS[::-1])[::-1]))
    few = RewardScorer(scorer.language_model, scorer.renderer, scorer.adapter, scorer.scale, tokens_at_once=8)
    assert_near(together, torch.tensor(few.raw_scores(CHATS)))
    turns = [[turn.as_dict() for turn in chat.messages] for chat in CHATS]
    assert_near(together, torch.tensor(scorer.raw_scores(turns)))


def test_tokens_that_were_drawn_are_scored_as_they_are(tuned: Path) -> None:
    scorer = scorer_of(tuned)
    prompts = [scorer.renderer.prompt_tokens(chat.messages[:-1]) for chat in CHATS]
    end = scorer.renderer.end_of_turn_id
    answers = [[*scorer.language_model.tokenizer(chat.messages[-1].content)["input_ids"], end] for chat in CHATS]
    assert_near(torch.tensor(scorer.scores_of_tokens(prompts, answers)), torch.tensor(scorer.scores(CHATS)))


def test_a_run_is_asked_for_the_scores_of_options(tuned: Path) -> None:
    told = scorer_of(tuned).tell(["Where is order 3?"], ["On its way, thank you.", "No idea!!"])
    assert [float(line.split()[0]) for line in told.lines] == pytest.approx(
        scorer_of(tuned).scores(CHATS[:2]), rel=1e-4
    )
    with pytest.raises(UsageError, match="needs one"):
        scorer_of(tuned).tell(["Where is order 3?"])


def test_what_has_no_answer_is_not_scored(tuned: Path) -> None:
    with pytest.raises(DataError, match="does not end with an answer"):
        scorer_of(tuned).scores([[Message("user", "Hi")]])


# ── beside a policy ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"kind": "prompt-tuning", "rank": None, "num_virtual_tokens": 3},
        {"kind": "ladder", "rank": None, "reduction": 2},
        {"kind": "mam", "rank": None},
    ],
    ids=lambda method: method.get("kind", "lora"),
)
def test_a_reward_adapter_beside_a_policy_scores_as_by_itself_and_changes_nothing(
    method: dict[str, Any], desk: Path, tuned: Path, tmp_path: Path
) -> None:
    folder = tuned
    if method:
        folder = tmp_path / "run"
        begin(values_of(desk, method=method, training={"steps": 4}), folder)
    policy = load_model(ModelSettings(name=str(desk / "decoder")), nothing)
    attachment = LoRA(rank=2).attach(policy, "policy", seed=1)
    with torch.no_grad():
        for tensor in attachment.trainables.values():
            tensor.add_(0.1)
    batch = batch_for(policy)
    before = policy.forward(batch, "policy").logprob_N
    beside = load_reward(folder, nothing, beside=policy)
    assert beside.language_model is policy
    assert_near(torch.tensor(beside.scores(CHATS)), torch.tensor(load_reward(folder, nothing).scores(CHATS)))
    assert_near(policy.forward(batch, "policy").logprob_N, before)
    trainable = {name for name, tensor in policy.hf.named_parameters() if tensor.requires_grad}
    assert trainable, "the policy still trains"
    assert not any("reward" in name for name in trainable)


def batch_for(policy: LanguageModel) -> Batch:
    """One text whose tokens a policy is asked for."""
    tokens_T, at_N = np.arange(5, 12), np.arange(6)
    ones_N = np.ones(6, dtype=np.float32)
    text = Example((Part(tokens_T),), at_N, tokens_T[1:], ones_N, at_N * 0, 0, Origin("x", 1))
    return collate([text], "packed", policy.pad_id)


def test_what_cannot_stand_beside_a_policy_says_why(desk: Path, tuned: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "other", hidden_size=16)
    other = load_model(ModelSettings(name=str(tmp_path / "other")), nothing)
    with pytest.raises(UsageError, match="are others"):
        load_reward(tuned, nothing, beside=other)
    begin(values_of(desk, **WAYS["full"]), tmp_path / "full")
    with pytest.raises(UsageError, match="cannot share a base"):
        load_reward(tmp_path / "full", nothing, beside=load_model(ModelSettings(name=str(desk / "decoder")), nothing))
    with pytest.raises(UsageError, match="cannot stand beside a model that has one"):
        load_reward(tuned, nothing, beside=load_base(tuned, nothing))
    begin(sft_values(desk), tmp_path / "sft")
    with pytest.raises(UsageError, match="is no reward model"):
        load_reward(tmp_path / "sft", nothing)


def sft_values(desk: Path) -> dict[str, Any]:
    rows = [{"prompt": "Hi", "completion": f"Hello {n}"} for n in range(8)]
    write_lines(desk / "plain.jsonl", rows)
    return recipe_values(desk / "decoder", desk / "plain.jsonl", training={"steps": 1})


# ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_measured_against_length_and_shows_what_it_goes_by(desk: Path, tuned: Path, tmp_path: Path) -> None:
    found = api.evaluate(tuned)
    assert found.candidates == ("length", "tuned")
    assert [measure.name for measure in found.measures] == ["accuracy", "loss"]
    assert found.measures[0].num_rows == 12 - len([n for n in range(100, 112) if n % 7 == 6])
    last = course(tuned)[-1]["validation_loss"]
    assert found.measures[1].estimates[1].value == pytest.approx(last, rel=1e-4)
    assert any("are ties" in note for note in found.notes)
    details = found.as_json()["details"]
    assert isinstance(details, dict)
    assert details["position"]["most_changed"] < 1e-5
    assert sum(each["count"] for each in details["reliability"]) == 24
    assert sum(each["count"] for each in details["margins"]) == found.measures[0].num_rows
    assert details["length_bias"]["longer_is_better"]["value"] == 1
    assert found.details is not None
    found.details.write_picture(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"
    again = api.evaluate(tuned, str(desk / "held-out.jsonl"))
    assert again.measures[1].estimates[1].value == pytest.approx(last, rel=1e-4)


def test_reward_models_are_measured_side_by_side_on_the_same_pairs(desk: Path, tuned: Path, tmp_path: Path) -> None:
    begin(values_of(desk, training={"steps": 3}), tmp_path / "short")
    also = [f"{tuned}@16", f"{tuned}@14", str(tmp_path / "short")]
    found, alone = api.evaluate(tuned, also=also), api.evaluate(tuned)
    assert found.candidates == ("length", "tuned", *also)
    assert found.subject == "tuned"
    short = api.evaluate(tmp_path / "short")
    for measure, own, of_short in zip(found.measures, alone.measures, short.measures, strict=True):
        assert measure.estimates[:2] == own.estimates
        assert measure.estimates[2] == measure.estimates[1], "the last checkpoint is what the run came to"
        assert measure.estimates[4] == of_short.estimates[1]
    losses = [estimate.value for estimate in found.measures[1].estimates]
    assert losses[3] != losses[1], "an earlier checkpoint is another model"
    assert found.as_json()["details"] == alone.as_json()["details"]
    assert any("told of tuned alone" in note for note in found.notes)
    assert not any("told of tuned alone" in note for note in alone.notes)


def test_what_reads_no_such_pairs_is_not_measured_beside_a_reward_model(
    desk: Path, tuned: Path, tmp_path: Path
) -> None:
    begin(values_of(desk, "encoder", training={"steps": 1}), tmp_path / "of-encoder")
    with pytest.raises(UsageError, match="makes other tokens of a text"):
        api.evaluate(tuned, also=[str(tmp_path / "of-encoder")])
    with pytest.raises(UsageError, match="is no model that scores answers: it cannot stand beside"):
        api.evaluate(tuned, also=[str(desk / "decoder")])
