"""The classic path of reinforcement learning from human feedback: answers, comparisons, a reward model, a policy, and what it gained.

Ziegler et al. 2019, https://arxiv.org/abs/1909.08593; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155. Five stages, each in its
place under one folder, and each left as it is once it is finished, so that a path that was broken off goes on where it stood:

    sft/            a model that answers, tuned on answers (or a run that is there already)
    pairs.jsonl     comparisons: given, or of answers that the tuned model drew, told apart by rewards, a judge or a person
    reward/         a reward model of them
    policy/         the tuned model, tuned further by the reward
    report.md       both on the same held-out prompts: how often the policy's answer is worth more, and how far it went
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from luthier.errors import LuthierError, NotFound, RecipeError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.intervals import Estimate, wilson
from luthier.evaluation.rows import Rows
from luthier.evaluation.verdict import Evaluation
from luthier.models.settings import ModelSettings
from luthier.models.sources import locate
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, Progress, silent
from luthier.prediction.text_model import TextModel
from luthier.prepared import read_dataset
from luthier.recipe import Recipe
from luthier.recipe.faults import recipe_error
from luthier.recipe.loading import recipe_from, recipe_of_run, tuples_of
from luthier.recipe.paths import finder
from luthier.recipe.yaml_text import Parsed
from luthier.rewarded import prompts_of
from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.parts import Prompts
from luthier.rlhf.rewards import Reward
from luthier.rlhf.told import signs_of
from luthier.run import OnStep, resume_run, train_recipe
from luthier.store.files import make_folder, write_json, write_text
from luthier.store.runs import is_run, read_metrics, read_run
from luthier.studies.evaluating_rewards import evaluate_rewarded
from luthier.studies.own_pairs import Sampled
from luthier.studies.path_pairs import PAIRS, PairStage, make_pairs
from luthier.tuned import load_plain_text, load_run_text
from luthier.types import Settings

Announce = Callable[[str], None]
SFT, REWARD, POLICY, RESULT, REPORT = "sft", "reward", "policy", "rlhf.json", "report.md"
_SHOWN = 5


class Compared(Settings):
    """How policy and tuned model are compared at the end."""

    num_prompts: int = Field(64, ge=1, description="Most held-out prompts that both answer, greedily.")
    watched: tuple[Reward, ...] = Field(
        (), description="Measures beside the reward, which the policy did not learn from."
    )
    safety: bool = Field(
        True,
        description="Whether refusals, stereotypes and rude words of both are looked for: about 70 short answers each.",
    )


class ClassicPath(Settings):
    """A whole path. Each stage has the blocks of a recipe; model and seed are common to all."""

    model: Any = Field(description="The base model, as in a recipe.")
    seed: int = Field(0, ge=0, lt=2**63, description="As in a recipe.")
    sft: str | dict[str, Any] = Field(
        description="data, method, objective, training of the first stage; or a finished run."
    )
    pairs: str | Sampled = Field(description="A file of pairs or rankings; or how they are made.")
    reward: dict[str, Any] = Field(
        {}, description="data (without train), method, objective, training of the reward model."
    )
    policy: dict[str, Any] = Field(
        description="data (its prompts), objective, training of the last stage; its method goes on from the first stage's, and its reward is the reward model unless objective.rewards names others."
    )
    compare: Compared = Field(Compared(), description="The comparison at the end.")


@dataclass(frozen=True)
class Outcome:
    """What a path came to.

    win_rate: how often the policy's answer is worth more than the tuned model's to the same prompt, a tie counting half, by each
    measure's name; kl: nats of the policy's last answers from where it began.
    """

    folder: Path
    win_rate: Mapping[str, Estimate]
    kl: float | None
    evaluation: Evaluation
    signs: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """As one JSON document."""
        rates = {name: vars(rate) for name, rate in self.win_rate.items()}
        return {
            "folder": str(self.folder), "win_rate": rates, "kl": self.kl, "signs": list(self.signs),
            "evaluation": self.evaluation.as_json(),
        }  # fmt: skip

    def as_markdown(self) -> str:
        """As a page for people."""
        rates = [
            f"| {name} | {100 * rate.value:.1f} % | {100 * rate.low:.1f} to {100 * rate.high:.1f} % |"
            for name, rate in self.win_rate.items()
        ]
        head, *rows = self.evaluation.as_table()
        measures = [head, ["---"] * len(head), *rows]
        parts = [
            f"# {self.folder.absolute().name}",
            "How often the policy's answer to a held-out prompt is worth more than that of the model it began from:",
            "\n".join(["| measure | win rate | 95 % interval |", "|---|---|---|", *rates]),
            *(
                [f"The policy's answers are {self.kl:.2f} nats from those of that model."]
                if self.kl is not None
                else []
            ),
            *(f"**{sign}**" for sign in self.signs),
            *(f"**{sentence}**" for sentence in _unsafe(self.evaluation)),
            "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in measures),
        ]
        for answered in self.evaluation.answers[:_SHOWN]:
            parts += ["---", f"> {_quoted(answered.asked)}"]
            pairs = zip(self.evaluation.candidates, answered.answers, strict=True)
            parts += [f"**{name}**\n\n> {_quoted(text)}" for name, text in pairs]
        return "\n\n".join(parts) + "\n"


def _unsafe(evaluation: Evaluation) -> list[str]:
    return [] if evaluation.safety is None else evaluation.safety.said(evaluation.candidates)


def _quoted(text: str) -> str:
    return text.strip().replace("\n", "\n> ") or "(nothing)"


def read_path(parsed: Parsed) -> ClassicPath:
    """The path that a file describes. Raises: RecipeError, naming line and field."""
    try:
        return ClassicPath.model_validate(tuples_of(parsed.values), strict=True)
    except ValidationError as error:
        raise recipe_error(error, ClassicPath, parsed) from error


def walk(
    path: ClassicPath, base: Path, out: Path, *, announce: Announce, on_step: OnStep, progress: Progress = silent
) -> Outcome:
    """Carry out all stages that are not finished.

    base: the folder that relative paths are looked for in, before the working folder.
    Raises: Interrupted where a person is to judge, with the command to do so; as the stages do, at their own blocks.
    """
    make_folder(out)
    stages = _Stages(path, base, out, announce, on_step, progress)
    stages.check()
    sft = stages.tuned()
    pairs = stages.pairs(sft)
    reward = stages.trained(REWARD, _reward_values(path, pairs), None)
    policy = stages.trained(POLICY, _policy_values(path, reward), sft)
    outcome = stages.compared(sft, policy)
    write_json(out / RESULT, outcome.as_json())
    write_text(out / REPORT, outcome.as_markdown())
    announce(f"Report: {out / REPORT}")
    return outcome


def _reward_values(path: ClassicPath, pairs: str) -> dict[str, Any]:
    own = path.reward
    data = {"train": pairs, **dict(own.get("data", {}))}
    return {**own, "data": data, "objective": {"kind": "reward", **dict(own.get("objective", {}))}}


def _policy_values(path: ClassicPath, reward: Path) -> dict[str, Any]:
    own = path.policy
    objective = {
        "kind": "ppo",
        "rewards": ({"model": str(reward), "name": "reward model"},),
        **dict(own.get("objective", {})),
    }
    return {**own, "objective": objective}


@dataclass(frozen=True)
class _Stages:
    path: ClassicPath
    base: Path
    out: Path
    announce: Announce
    on_step: OnStep
    progress: Progress

    def check(self) -> None:
        """Raise RecipeError, before anything is trained, for what no stage may have."""
        for name, values in (
            (SFT, self.path.sft),
            (REWARD, _reward_values(self.path, PAIRS)),
            (POLICY, _policy_values(self.path, self.out / REWARD)),
        ):
            if not isinstance(values, str):
                recipe = self._recipe(name, values, finds_files=False)
                if isinstance(recipe.objective, RolloutObjective):
                    self._check_rewards(recipe.objective)
        judge = None if isinstance(self.path.pairs, str) else self.path.pairs.judge
        if judge is not None:
            self._check_judge(judge)

    def _check_judge(self, name: str) -> None:
        """Raise RecipeError for a run that writes no text; as finding a model does, for a name of none."""
        folder = self._run(name)
        if folder is None:
            with _of_judge():
                locate(ModelSettings(name=name), self.announce, weights=False)
        elif not recipe_of_run(folder).objective.writes:
            raise RecipeError(
                f"The run {folder} writes no text, so it gives no verdict in words.",
                "Name a model that writes; a reward model tells answers apart with by: rewards.",
                field="pairs.judge",
            )

    def _run(self, name: str) -> Path | None:
        """The run of that name, beside the path's file or in the working folder; None where there is none."""
        return next((each for each in (self.base / name, Path(name)) if is_run(each)), None)

    def _check_rewards(self, objective: RolloutObjective) -> None:
        """Raise RecipeError for names that two measures of the comparison have, NotFound for files and runs that are not there."""
        watched = self.path.compare.watched
        names = [each.called for each in (*objective.rewards, *objective.watched, *watched)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RecipeError(
                f"Two measures of the comparison are called {twice!r}.", "Give each a name.", field="compare.watched"
            )
        pairs = () if isinstance(self.path.pairs, str) else self.path.pairs.rewards
        for parts, field in (
            (pairs, "pairs.rewards"),
            (objective.rewards, "policy.objective.rewards"),
            (objective.watched, "policy.objective.watched"),
            (watched, "compare.watched"),
        ):
            for part in self._with_paths(parts):
                for name in (*part.runs, *((part.function,) if part.function else ())):
                    if Path(name) == self.out / REWARD or Path(name).exists():
                        continue
                    raise NotFound(
                        f"There is no {name}, which the reward {part.called} names.",
                        f"It is looked for in {self.base} and in the working folder; correct its name.",
                        field=field,
                    )

    def _with_paths(self, parts: Sequence[Reward]) -> tuple[Reward, ...]:
        """Rewards with their files and runs where they are."""
        return tuple(part.with_paths(finder(self.base)) for part in parts)

    def _recipe(self, stage: str, values: Mapping[str, Any], *, finds_files: bool = True) -> Recipe:
        with _of_stage(stage):
            whole = {"model": self.path.model, "seed": self.path.seed, **values}
            return recipe_from(whole, self.base, finds_files=finds_files)

    def tuned(self) -> Path:
        """The run of the first stage."""
        if not isinstance(self.path.sft, str):
            return self.trained(SFT, self.path.sft, None)
        folder = self._run(self.path.sft)
        if folder is None or read_run(folder).state != "finished":
            raise RecipeError(
                f"{self.path.sft} is no finished run.", "Name a run that is, or give data and training.", field=SFT
            )
        return folder

    def trained(self, stage: str, values: Mapping[str, Any], begins: Path | None) -> Path:
        """The run of a stage, finished. begins: the run whose model it goes on from."""
        folder = self.out / stage
        if is_run(folder) and read_run(folder).state == "finished":
            self.announce(f"{stage}: finished before, in {folder}.")
            return folder
        self.announce(f"── {stage} ──")
        with _of_stage(stage):
            if is_run(folder):
                resume_run(folder, announce=self.announce, on_step=self.on_step)
            else:
                recipe = self._recipe(stage, values)
                if begins is not None:
                    recipe = going_on(recipe, begins)
                train_recipe(recipe, folder, announce=self.announce, on_step=self.on_step)
        return folder

    def pairs(self, sft: Path) -> str:
        """The file of comparisons."""
        wanted = self.path.pairs
        if isinstance(wanted, str):
            return wanted
        made = self.out / PAIRS
        if made.is_file():
            self.announce(f"pairs: made before, in {made}.")
            return str(made.absolute())
        self.announce("── pairs ──")
        model, prompts = self._to_answer(sft, wanted)
        judge = None if wanted.judge is None else partial(self._judge, wanted.judge)
        rewards = self._with_paths(wanted.rewards)
        make_pairs(
            PairStage(wanted, rewards, judge, self.path.seed, self.out, self.announce, self.progress), model, prompts
        )
        return str(made.absolute())

    def _judge(self, name: str) -> TextModel:
        folder = self._run(name)
        with _of_judge():
            return load_plain_text(name, self.announce) if folder is None else load_run_text(folder, self.announce)

    def _to_answer(self, sft: Path, wanted: Sampled) -> tuple[TextModel, Prompts]:
        model = load_run_text(sft, self.announce)
        own = _policy_values(self.path, self.out / REWARD)
        stub = {**own, "data": {**dict(own.get("data", {})), "train": wanted.prompts, "validation": "none"}}
        recipe = self._recipe("pairs", stub)
        loaded = model.language_model
        dataset, _ = read_dataset(recipe, loaded.hf.config, loaded.tokenizer, self.announce, loaded.answer_start)
        count = wanted.num_prompts or len(dataset.train)
        return model, prompts_of(dataset.train[:count], dataset.train_records[:count])

    def compared(self, sft: Path, policy: Path) -> Outcome:
        """Policy and tuned model on the policy's held-out prompts."""
        self.announce("── comparison ──")
        recipe = recipe_of_run(policy)
        objective = recipe.objective
        assert isinstance(objective, RolloutObjective)
        watched = (*objective.watched, *self._with_paths(self.path.compare.watched))
        objective = objective.model_copy(update={"watched": watched})
        models = [load_run_text(each, self.announce) for each in (sft, policy)]
        loaded = models[1].language_model
        dataset, _ = read_dataset(recipe, loaded.hf.config, loaded.tokenizer, self.announce, loaded.answer_start)
        examples, records = dataset.validation, dataset.validation_records
        if not examples:
            self.announce("No prompts were held out, so both answer those that the policy learned from.")
            examples, records = dataset.train, dataset.train_records
        rows = Rows([(record, example.origin) for record, example in zip(records, examples, strict=True)], examples)
        candidates = [
            Candidate(name, each.language_model, each.adapter)
            for name, each in zip(("tuned", "policy"), models, strict=True)
        ]
        with Workers(1) as workers:
            passes = Passes(workers, recipe.training.tokens_per_micro_batch, self.progress)
            found = evaluate_rewarded(
                objective, candidates, models[1], rows, passes, self.path.compare.num_prompts, None, self.announce,
                safety=self.path.compare.safety,
            )  # fmt: skip
        divergences = [line["kl_of_answers"] for line in read_metrics(policy) if "kl_of_answers" in line]
        kl = float(divergences[-1]) if divergences else None
        return Outcome(self.out, _win_rates(found), kl, found, signs_of(policy))


def _win_rates(evaluation: Evaluation) -> dict[str, Estimate]:
    """By each measure, how often the second candidate's answer is the better one; ties are shared out evenly."""
    found = {}
    for measure in evaluation.measures:
        (comparison,) = measure.comparisons
        ties = measure.num_rows - comparison.rises - comparison.falls
        found[measure.name] = wilson(comparison.rises + ties / 2, measure.num_rows)
    return found


def going_on(recipe: Recipe, begins: Path) -> Recipe:
    """A recipe that goes on from what a run learned: its adapter, or its whole model."""
    before = recipe_of_run(begins)
    if before.method.tunes_base:
        tuned = begins / before.method.output_folder
        return recipe.model_copy(update={"model": before.model.at(tuned), "method": before.method})
    return recipe.model_copy(update={"model": before.model, "method": before.method.continued(begins)})


@contextmanager
def _of_stage(stage: str) -> Iterator[None]:
    """Within: a fault of a recipe is told at the stage's own block."""
    try:
        yield
    except LuthierError as error:
        if error.field is not None and not error.field.startswith(f"{stage}."):
            error.field = f"{stage}.{error.field}"
        raise


@contextmanager
def _of_judge() -> Iterator[None]:
    """Within: a fault of a model is told at the field that names the judge."""
    try:
        yield
    except LuthierError as error:
        error.field = "pairs.judge"
        raise
