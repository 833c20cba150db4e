"""Who judges where no person does: a model here, one behind an endpoint, or a reward model; in `luthier judge`, and for graders."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.output import say
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.evaluation.judged.blind import Question
    from luthier.evaluation.judged.endpoint import Endpoint
    from luthier.evaluation.judged.records import JudgmentFile
    from luthier.evaluation.judged.verdicts import Judge

JudgeModel = Annotated[
    str | None,
    typer.Option("--judge", help="A model judges instead of a person: a run, as in a recipe, or a reward model's run."),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option("--judge-url", help="The judge is behind this address, which speaks OpenAI's chat completions."),
]
JudgeName = Annotated[str | None, typer.Option("--judge-model", help="The judge's name there.")]
JudgeKeyEnv = Annotated[
    str | None, typer.Option("--judge-key-env", metavar="NAME", help="The environment variable that holds its key.")
]
JudgeTimeout = Annotated[
    float, typer.Option("--judge-timeout", min=0.1, help="Seconds that one of its answers may take.")
]
JudgeRetries = Annotated[
    int, typer.Option("--judge-retries", min=0, help="How often a request that failed is made again.")
]
JudgeParallel = Annotated[int, typer.Option("--judge-parallel", min=1, help="How many requests are made side by side.")]
JudgeMaxTokens = Annotated[int, typer.Option("--judge-max-tokens", min=1, help="Most tokens of one of its answers.")]
MaxUnreadable = Annotated[
    float,
    typer.Option("--max-unreadable", min=0, max=1, help="The share of verdicts that may be none; more is an error."),
]
TIMEOUT_SECONDS, RETRIES, PARALLEL, MAX_TOKENS, MAX_UNREADABLE = 120.0, 4, 4, 512, 0.2
"""How these options stand where they are not given."""

GradersJudge = Annotated[
    str | None, typer.Option("--judge", help="The model that graders by a model ask: a run, or as in a recipe.")
]
GradersJudgeName = Annotated[
    str | None, typer.Option("--judge-model", help="The judge's name there; unset: the one that each grader names.")
]


@dataclass(frozen=True)
class JudgeOptions:
    """What was said of the judge on the command line."""

    model: str | None
    url: str | None
    name: str | None
    key_env: str | None
    timeout_seconds: float
    retries: int
    parallel: int
    max_tokens: int
    max_unreadable: float = MAX_UNREADABLE

    @property
    def is_named(self) -> bool:
        """Whether a model is to judge."""
        return self.model is not None or self.url is not None

    def check(self, *, needs_name: bool) -> None:
        """Raise UsageError for two judges, or a half of one. needs_name: of one at an endpoint; graders may have its name themselves."""
        if self.model is not None and (self.url is not None or self.name is not None):
            raise UsageError("Two judges are named.", "Name one: --judge MODEL, or --judge-url with --judge-model.")
        lacks_address = self.name is not None and self.url is None
        lacks_name = self.url is not None and self.name is None
        if lacks_address or (lacks_name and needs_name):
            raise UsageError(
                "Of a judge behind an endpoint, address and name are needed.", "Give --judge-url and --judge-model."
            )
        if self.key_env is not None and self.url is None:
            raise UsageError("A key is for a judge behind an endpoint.", "Give --judge-url and --judge-model.")

    def of_graders(self) -> str | Endpoint | None:
        """Whom graders by a model ask, if anybody. Raises: UsageError."""
        self.check(needs_name=False)
        return self.endpoint() if self.url is not None else self.model

    def endpoint(self) -> Endpoint:
        """The endpoint that was named. Raises: UsageError for what is none, or a key that is not there."""
        from luthier.evaluation.judged.endpoint import Endpoint, check_endpoint
        from luthier.generation.remote.http import tell_open_key

        assert self.url is not None
        key = None if self.key_env is None else os.environ.get(self.key_env)
        if self.key_env is not None and key is None:
            raise UsageError(f"There is no environment variable {self.key_env}.", "Set it to the judge's key.")
        name = self.name or ""
        found = Endpoint(self.url, name, key, self.timeout_seconds, self.retries, self.parallel, self.max_tokens)
        check_endpoint(found)
        tell_open_key(self.url, key, say)
        return found


def load_judge(options: JudgeOptions, guideline: str | None) -> Judge:
    """The judge that was named, who can be asked.

    Raises: UsageError for a run that learned something else than to answer or to score; NetworkError, NotAllowed as `EndpointModel.check`.
    """
    from luthier.api import RUNS, load_any
    from luthier.evaluation.judged.endpoint import EndpointModel
    from luthier.evaluation.judged.verdicts import RewardJudge, TextJudge
    from luthier.generation.settings import Sampling
    from luthier.prediction.reward import RewardScorer
    from luthier.prediction.text_model import TextModel
    from luthier.store.runs import find_run
    from luthier.studies.judging import asking_model

    if options.model is None:
        endpoint = options.endpoint()
        asked = EndpointModel(endpoint)
        asked.check()
        how = {"kind": "endpoint", "url": endpoint.url, "max_tokens": endpoint.max_tokens}
        return TextJudge(endpoint.model, asked, how, guideline, 8 * endpoint.parallel)
    name = str(find_run(options.model, RUNS)) if options.model == "latest" else options.model
    model = load_any(name, say)
    if isinstance(model, RewardScorer):
        if guideline is not None:
            raise UsageError("A reward model reads no guideline.", "Leave --guideline out.")
        return RewardJudge(name, model)
    if not isinstance(model, TextModel):
        raise UsageError(
            f"The model of {name} {model.does}: it cannot judge.", "Name one that writes or scores answers."
        )
    ask = asking_model(model, Sampling(max_new_tokens=options.max_tokens))
    return TextJudge(name, ask, {"kind": "model", "max_tokens": options.max_tokens}, guideline)


def judged_by_model(
    questions: list[Question],
    judgments: JudgmentFile,
    judge: Judge,
    options: JudgeOptions,
    order_seed: int,
    pairs_per_prompt: int,
) -> int:
    """Have the model judge the pairs that it has not judged yet; how many are left: none. Raises as `judge_by_model`."""
    from luthier.cli.display import TaskBar
    from luthier.cli.measuring import ProgressLines
    from luthier.evaluation.judged.blind import pairs_of
    from luthier.evaluation.judged.model_session import judge_by_model

    pairs = pairs_of(questions, pairs_per_prompt, say)
    if any(judge.name == answer.model for pair in pairs for answer in pair.responses):
        say(f"{judge.name} judges answers of its own: models favour them.")
    with TaskBar() as bar:
        progress = bar if sys.stderr.isatty() else ProgressLines()
        judge_by_model(
            pairs, judgments, judge, seed=order_seed, most_unreadable=options.max_unreadable, progress=progress
        )
    return 0
