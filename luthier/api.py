"""The Python door: train a recipe, load what it made, and ask it things. The command line stands on the same objects."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.data import tokenizer_training
from luthier.data.dataset import load_examples
from luthier.data.reading import called
from luthier.data.rendering import Renderer, build_renderer
from luthier.data.template import read_template
from luthier.data.tokenizer_training import TokenizerSettings, TrainedTokenizer
from luthier.errors import DataError, NotFound, UsageError
from luthier.evaluation.classification import class_logprobs, evaluate_classes
from luthier.evaluation.compare import Candidate, Progress, check_room, evaluate_records
from luthier.evaluation.verdict import Evaluation
from luthier.generation.engine import Completed, Request, generate, stream
from luthier.generation.settings import Sampling
from luthier.methods import ADAPTER
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.objectives import Classification
from luthier.ops.workers import Workers
from luthier.prepared import asked_of, read_dataset
from luthier.recipe import Recipe, load_recipe, make_recipe
from luthier.run import RunResult, train_recipe
from luthier.store.places import expanded
from luthier.store.runs import find_run, is_run, list_runs, new_run_folder
from luthier.tuned import load_base, load_run, recipe_of_run
from luthier.types import Completion, Example, Labelled, Message, Origin, Record, Settings

Announce = Callable[[str], None]
Prompt = str | Sequence[Message | Mapping[str, str]]

RUNS = Path("runs")
"""Where runs go and are looked for, in the working folder."""

_TOKENS_AT_ONCE = 4096

_log = logging.getLogger("luthier")


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    announce: Announce = _log.info,
    on_step: Callable[[dict[str, Any]], None] = lambda record: None,
) -> RunResult:
    """Carry out a recipe (typed, as plain values, or the path of its file) in a new run folder.

    Args:
        out: the run folder; unset, `runs/NAME-N` after the recipe's or the data's name.
        announce: is told what is worth knowing, a sentence at a time.
        on_step: is handed each step's numbers, as in metrics.jsonl, with `total_steps`.

    Raises: the errors of `luthier.errors`.
    """
    if isinstance(recipe, str | Path):
        name, typed = Path(recipe).stem, load_recipe(recipe)
    else:
        typed = recipe if isinstance(recipe, Recipe) else make_recipe(recipe)
        first = typed.data.train if isinstance(typed.data.train, str) else typed.data.train[0]
        name = called(first)
    folder = new_run_folder(RUNS, name) if out is None else expanded(out)
    return train_recipe(typed, folder, announce=announce, on_step=on_step)


def train_tokenizer(
    data: str | Sequence[str], out: str | Path, *, announce: Announce = _log.info, **settings: Any
) -> TrainedTokenizer:
    """Train a tokenizer on the texts of data files and write it into a new folder; `settings` as `TokenizerSettings` has them.

    Raises: UsageError for a setting that is wrong or a folder that is not empty; DataError for texts that support no such
    vocabulary.
    """
    try:
        asked = TokenizerSettings(**settings)
    except ValidationError as error:
        raise _setting_fault(error, "A tokenizer", TokenizerSettings) from error
    files = (data,) if isinstance(data, str) else tuple(data)
    return tokenizer_training.train_tokenizer(files, expanded(out), asked, announce)


def load(run: str | Path, announce: Announce = _log.info) -> TextModel | Classifier:
    """The model of a run with what it learned; `run` is its folder, its name under `runs/`, or `latest`."""
    folder = find_run(str(run), RUNS)
    recipe = recipe_of_run(folder)
    model = load_run(folder, announce)
    adapter = None if recipe.method.tunes_base else ADAPTER
    renderer = build_renderer(recipe.data, model.tokenizer, model.anatomy.family.pooled, model.answer_start)
    return Classifier(model, renderer, adapter) if model.classes else TextModel(model, renderer, adapter)


def load_text(run: str | Path, announce: Announce = _log.info) -> TextModel:
    """The model of a run that learned to write. Raises UsageError for one that learned to tell classes apart."""
    recipe = recipe_of_run(find_run(str(run), RUNS))
    if not recipe.objective.writes:
        raise UsageError(
            f"The run {run} learned to tell classes apart: it does not write.",
            f"Ask it for the class of a text with 'luthier generate {run} --prompt TEXT'.",
        )
    model = load(run, announce)
    assert isinstance(model, TextModel)
    return model


def base_of(run: str | Path, tuned: TextModel, announce: Announce = _log.info) -> TextModel:
    """The model that a run began from, asked in the same way; it shares the tuned model's weights where it can."""
    if tuned.adapter is not None:
        return replace(tuned, adapter=None)
    return replace(tuned, language_model=load_base(find_run(str(run), RUNS), announce))


def load_plain(name: str, announce: Announce = _log.info) -> TextModel:
    """A model without a run: a built-in name, a folder, a hub id or a .gguf file."""
    model = load_model(ModelSettings(name=name), announce)
    renderer = Renderer(model.tokenizer, read_template(None, model.tokenizer), answer_start=model.answer_start)
    return TextModel(model, renderer, None)


def load_any(name: str, announce: Announce = _log.info) -> TextModel | Classifier:
    """The model of a run where `name` is one, else the plain model of that name."""
    if _names_a_run(name):
        return load(name, announce)
    return _plain_or_near(name, announce)


def load_any_text(name: str, announce: Announce = _log.info) -> TextModel:
    """The same, of a model that writes. Raises UsageError for a run that learned to tell classes apart."""
    return load_text(name, announce) if _names_a_run(name) else _plain_or_near(name, announce)


def _names_a_run(name: str) -> bool:
    return name == "latest" or is_run(expanded(name)) or is_run(RUNS / name)


def _plain_or_near(name: str, announce: Announce) -> TextModel:
    """The plain model of that name. Raises NotFound, with the runs whose names come near."""
    try:
        return load_plain(name, announce)
    except NotFound as error:
        error.mend = f"{error.mend} {_near_runs(name)}".strip()
        raise


def _near_runs(name: str) -> str:
    """What to say of the runs here that a name may have meant; nothing if none come near."""
    names = [run.name for run in list_runs(RUNS)]
    near = [run for run in names if run.startswith(name)] or difflib.get_close_matches(name, names, n=3)
    return f"If a run is meant: did you mean {' or '.join(near[-3:])}?" if near else ""


def evaluate(
    run: str | Path,
    data: str | None = None,
    *,
    limit: int | None = None,
    sampling: Sampling | None = None,
    announce: Announce = _log.info,
    progress: Progress = lambda task, done, total: None,
) -> Evaluation:
    """The base and the tuned model of a run on the same rows: those of `data`, or what the run held out.

    A model that tells classes apart is compared with the most frequent class instead of a base that knows none.

    Args:
        limit: use only the first so many rows.
        sampling: how answers are drawn; unset, greedily.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises: NotFound for a run or data that is not there; DataError for rows that cannot be used.
    """
    recipe = recipe_of_run(find_run(str(run), RUNS))
    tuned = load(run, announce)
    rows = _rows_to_evaluate(recipe, data, tuned, announce)
    workers = recipe.training.workers
    records = [(record, example.origin) for record, example in rows]
    examples = [replace(example, document=index) for index, (_, example) in enumerate(rows)]
    budget = recipe.training.tokens_per_micro_batch
    candidate = Candidate("tuned", tuned.language_model, tuned.adapter)
    with Workers(workers if isinstance(workers, int) else 1) as threads:
        if isinstance(tuned, Classifier):
            return evaluate_classes(
                candidate, records, examples, threads, tokens_per_micro_batch=budget, limit=limit, progress=progress
            )
        base = base_of(run, tuned, announce)
        return evaluate_records(
            [Candidate("base", base.language_model, base.adapter), candidate],
            records,
            examples,
            tuned.renderer,
            sampling or Sampling(),
            threads,
            tokens_per_micro_batch=budget,
            limit=limit,
            progress=progress,
        )


def _rows_to_evaluate(
    recipe: Recipe, data: str | None, model: TextModel | Classifier, announce: Announce
) -> list[tuple[Record, Example]]:
    objective = recipe.objective
    if data is not None:
        # what was too long to train on can be measured all the same
        settings = recipe.data.model_copy(update={"max_length": 2**31})
        found = load_examples(data, settings, model.renderer, objective.example, announce, asked_of(objective))
        return list(zip(found.records, found.examples, strict=True))
    loaded = model.language_model
    dataset, _ = read_dataset(recipe, loaded.hf.config, loaded.tokenizer, announce, loaded.answer_start)
    if not dataset.validation:
        raise UsageError("The run held out no rows.", "Give rows to evaluate on with --data FILE.")
    return list(zip(dataset.validation_records, dataset.validation, strict=True))


def make_sampling(values: Mapping[str, Any]) -> Sampling:
    """Sampling settings from plain values. Raises UsageError, naming the setting, for one that is wrong."""
    try:
        return Sampling(**values)
    except ValidationError as error:
        raise _setting_fault(error, "Sampling", Sampling) from error


def _setting_fault(error: ValidationError, what: str, settings: type[Settings]) -> UsageError:
    """What is wrong with the first setting at fault."""
    fault = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in fault["loc"])
    found = str(fault.get("ctx", {}).get("error", fault["msg"])).removesuffix(".")
    return UsageError(f"{name}: {found}.", f"{what} takes {', '.join(settings.model_fields)}.", field=name)


@dataclass(frozen=True)
class TextModel:
    """A model that answers: its weights, how prompts become tokens, and the adapter to use (None: the bare weights)."""

    language_model: LanguageModel
    renderer: Renderer
    adapter: str | None

    def generate(self, prompt: Prompt, **sampling: Any) -> str:
        """The answer to a prompt, or to the messages of a chat. Greedy unless `sampling` says otherwise."""
        return self.complete([prompt], make_sampling(sampling))[0].text

    def stream(self, prompt: Prompt, **sampling: Any) -> Generator[str, None, Completed]:
        """The same piece by piece."""
        return stream(self.language_model, self._request(prompt, make_sampling(sampling)))

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completed]:
        """The answers to several prompts, computed together."""
        return generate(self.language_model, [self._request(prompt, sampling) for prompt in prompts])

    def chat(self, system: str | None = None, **sampling: Any) -> Chat:
        """A conversation that remembers what was said; `system` is an instruction that stands before it."""
        opening = () if system is None else (Message("system", system),)
        return Chat(self, make_sampling(sampling), opening, list(opening))

    def _request(self, prompt: Prompt, sampling: Sampling) -> Request:
        end_of_turn = self.renderer.end_of_turn_id
        stop_ids = frozenset() if end_of_turn is None else frozenset([end_of_turn])
        return Request(tuple(self._tokens(prompt)), sampling, self.adapter, stop_ids)

    def _tokens(self, prompt: Prompt) -> list[int]:
        """A prompt as training wrote it: text as a question in a chat, or plainly where the rows were plain."""
        if isinstance(prompt, str):
            _check_whole(prompt)
            tokens = self.renderer.record_prompt(Completion(prompt, ""))
            assert tokens is not None  # a completion has a prompt
            return tokens
        messages = [_message(each) for each in prompt]
        for message in messages:
            _check_whole(message.content)
        return self.renderer.prompt_tokens(messages)


def _check_whole(text: str) -> None:
    """Raise DataError for half of a character: what the system makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"A prompt holds {error.object[error.start]!a}, which is no whole character."
        raise DataError(found, "Give it as UTF-8 text.") from error


def _message(value: Message | Mapping[str, str]) -> Message:
    if isinstance(value, Message):
        return value
    try:
        return Message(value["role"], value["content"])
    except KeyError as error:
        raise UsageError(f"A message has no {error}.", "Give each message a role and a content.") from error


@dataclass(frozen=True)
class Classified:
    """The most probable class of a text, and the probability of each class."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Classifier:
    """A model that tells classes apart: its weights, how texts become tokens, and the adapter to use."""

    language_model: LanguageModel
    renderer: Renderer
    adapter: str | None

    def generate(self, prompt: Prompt, **sampling: Any) -> str:
        """The class of a text. Raises UsageError for messages, and for sampling settings: nothing is drawn."""
        if not isinstance(prompt, str) or sampling:
            raise UsageError(
                "A model that tells classes apart answers to a text, and draws nothing.",
                "Give the text alone, without messages and sampling settings.",
            )
        return self.classify([prompt])[0].label

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[Classified]:
        """The classes of several texts, or pairs of texts. Raises DataError for one beyond the model's context."""
        classes = self.language_model.classes
        objective = Classification(classes=classes)
        examples = []
        for index, text in enumerate(texts):
            first, second = (text, None) if isinstance(text, str) else text
            origin = Origin("text", index + 1)
            rendered = self.renderer.render_whole(Labelled(first, second, classes[0]), origin)
            examples.append(objective.example(rendered, index, origin))
        candidate = Candidate("model", self.language_model, self.adapter)
        check_room(candidate, [], examples)
        with Workers(1) as workers:
            share_RC = class_logprobs(candidate, examples, _TOKENS_AT_ONCE, workers).exp()
        return [
            Classified(classes[int(share_C.argmax())], dict(zip(classes, share_C.tolist(), strict=True)))
            for share_C in share_RC
        ]


@dataclass
class Chat:
    """A conversation with a model: `messages` holds what was said so far, the opening included.

    A model without a chat template goes on from what is said now alone, as plain text.
    """

    model: TextModel
    sampling: Sampling
    opening: tuple[Message, ...] = ()
    messages: list[Message] = field(default_factory=list)

    def say(self, text: str) -> str:
        """The model's answer to what the user says now."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The same piece by piece; an answer that is broken off is forgotten together with its question."""
        messages = [*self.messages, Message("user", text)]
        is_plain = self.model.renderer.chat is None and not self.opening
        answer = ""
        for piece in self.model.stream(text if is_plain else messages, **self.sampling.model_dump()):
            answer += piece
            yield piece
        self.messages = [*messages, Message("assistant", answer)]

    def reset(self) -> None:
        """Forget everything but the opening."""
        self.messages = list(self.opening)
