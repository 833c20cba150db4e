"""A recipe's rows made ready for its model: read, judged by the gate, and laid out for its method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from luthier.corruption.vocabulary import Vocabulary
from luthier.data.apart import laid_apart
from luthier.data.dataset import Asked, Dataset, Examples, load_dataset, load_examples
from luthier.data.drawn import Drawing, Vary
from luthier.data.facts import facts_of, remade
from luthier.data.gate import GateReport, Rules, check_gate
from luthier.data.marked import marked_text
from luthier.data.placeholders import with_placeholders
from luthier.data.sequences import joined
from luthier.data.settings import DataSettings
from luthier.errors import DataError, GateRefusal, LuthierError, RecipeError
from luthier.models.families import Family, family_of
from luthier.models.loading import check_head
from luthier.models.positions import longest_row
from luthier.models.sources import locate, read_answer_start, read_config, read_tokenizer, with_new_tokens
from luthier.objectives import CLM, Objective, kind_of
from luthier.recipe import Recipe
from luthier.recipe.companions import check_companion, told_of
from luthier.rlhf import PPO, RolloutObjective
from luthier.types import Example

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, read and passed by the gate; and its objective, with what the rows settle.

    drawing: what makes of the training rows the examples of each epoch, where the objective draws them; those held out are
    drawn already. first_epoch: the training examples as they are in the first epoch. num_words: how many words the model has.
    companion_words: how many each companion of the objective has, by its role. texts: of pre-training, which an objective of
    reinforcement learning mixes in; None where none does.
    """

    dataset: Dataset
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    gate: GateReport
    first_epoch: Sequence[Example]
    drawing: Drawing | None = None
    num_words: int = 0
    companion_words: Mapping[str, int] = field(default_factory=dict)
    texts: Examples | None = None

    @property
    def all_rows(self) -> Sequence[Example]:
        """The training examples and those held out."""
        return joined([self.dataset.train, self.dataset.validation])

    @property
    def first_rows(self) -> Sequence[Example]:
        """The training examples as they are in the first epoch; of prompts, with the longest answers that there may be."""
        if isinstance(self.objective, RolloutObjective):
            return remade(self.objective.imagined, self.dataset.train)
        return self.first_epoch


def check_recipe(recipe: Recipe, announce: Announce) -> Prepared:
    """Read the recipe's data and let the gate judge it, without loading the model's weights."""
    source = locate(recipe.model, announce, weights=False)
    tokenizer = read_tokenizer(source)
    config = with_new_tokens(read_config(source), source, tokenizer)
    answer_start = read_answer_start(source, config)
    companions = [
        (each, check_companion(each, recipe.model.device, config, tokenizer, answer_start, announce))
        for each in recipe.objective.others
    ]
    dataset, objective = read_dataset(recipe, config, tokenizer, announce, answer_start)
    drawing = drawing_of(recipe, objective, tokenizer, answer_start)
    drawn = dataset if drawing is None else replace(dataset, train=drawn_rows(drawing, dataset.train))
    only_asks = objective.takes == "prompts"
    rules = Rules(
        learns_ends=objective.learns_ends,
        in_place=objective.in_place,
        only_asks=only_asks,
        ranks=objective.takes == "rankings",
    )
    trusted = recipe.model.trust_tokenizer
    with _with_lengths(dataset):
        check_lengths(drawn, config)
        gate = check_gate(drawn, int(config.vocab_size), rules, marks_of(config), trusts_tokenizer=trusted)
        for companion, own in companions:
            with told_of(companion):
                check_lengths(drawn, own)
    words = {companion.role: int(own.vocab_size) for companion, own in companions}
    texts = texts_beside(recipe, dataset, config, announce)
    return Prepared(dataset, objective, tokenizer, gate, drawn.train, drawing, int(config.vocab_size), words, texts)


@contextmanager
def _with_lengths(dataset: Dataset) -> Iterator[None]:
    """Within: a refusal says how long the rows are."""
    try:
        yield
    except GateRefusal as refusal:
        refusal.lengths = dataset.lengths
        raise


def marks_of(config: PreTrainedConfig) -> dict[str, int]:
    """The tokens that a model's config names."""
    values = config.to_dict()
    named = {name: values.get(name) for name in ("bos_token_id", "eos_token_id")}
    return {name: index for name, index in named.items() if isinstance(index, int)}


def read_dataset(
    recipe: Recipe,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    announce: Announce,
    answer_start: int | None,
) -> tuple[Dataset, Objective]:
    """The recipe's rows as its objective learns from them for a model of that config, and the objective settled.

    answer_start: the token that an encoder-decoder's decoder begins with; None for models of one stream.
    Raises RecipeError, too, if the objective is not for such a model, or it can have no head for it.
    """
    objective, family = recipe.objective, family_of(config.model_type)
    check_kind(objective, family, config.model_type)
    check_head(family, config.model_type, objective.settled(()).head(recipe.seed))
    dataset = load_dataset(
        recipe.data,
        tokenizer,
        objective.example,
        announce,
        asked=asked_of(objective),
        of_labels=(lambda labels: objective.settled(labels).example) if objective.takes in ("labels", "tags") else None,
        pooled=family.pooled,
        answer_start=answer_start,
    )
    objective = objective.settled(dataset.labels)
    shares = recipe.training.fast.prefix
    train, validation = (
        laid_out(rows, objective, family, recipe.data.max_length, shares)
        for rows in (dataset.train, dataset.validation)
    )
    dataset = replace(dataset, train=train, validation=validation)
    drawing = drawing_of(recipe, objective, tokenizer, answer_start)
    if drawing is not None:
        held_out = partial(drawing.held_out, first=dataset.first_held_out)
        dataset = replace(dataset, validation=remade(held_out, dataset.validation))
    return dataset, objective


def texts_beside(recipe: Recipe, dataset: Dataset, config: PreTrainedConfig, announce: Announce) -> Examples | None:
    """The texts of pre-training that the objective mixes in, as the clm objective learns them; None where it mixes none in.

    Raises: as reading rows does, at the field that names them.
    """
    objective = recipe.objective
    if not isinstance(objective, PPO) or objective.pretraining is None:
        return None
    settings = DataSettings(train=objective.pretraining.data, validation="none", max_length=recipe.data.max_length)
    try:
        texts = load_examples(settings.train, settings, dataset.renderer, CLM().example, announce, asked_of(CLM()))
        check_lengths(replace(dataset, train=texts.examples, validation=()), config)
        if not len(texts.examples):
            raise DataError("There is no text of pre-training.", "Give at least one.", file=objective.pretraining.data)
    except LuthierError as error:
        error.field = error.field or "objective.pretraining.data"
        raise
    return texts


def laid_out(
    rows: Sequence[Example], objective: Objective, family: Family, longest: int, shares: bool = True
) -> Sequence[Example]:
    """Rows as models of a family read them: with the answers of other rows where the objective needs some, and, where rows cannot
    or shall not share tokens, with answers to one prompt apart. longest: most tokens of a row with another's answer.
    """
    if objective.needs_others:

        def beside(index: int) -> Example:
            return objective.beside_other(rows[index], rows[index - 1], longest)

        places = range(len(rows))
        rows = remade(beside, tuple(places) if isinstance(rows, tuple) else places)
    judges = objective.takes in ("preferences", "verdicts", "rankings")
    return remade(laid_apart, rows) if judges and (family.layout == "bucketed" or not shares) else rows


def asked_of(objective: Objective) -> Asked:
    """What an objective asks of rows."""
    key = f"{type(objective).__module__} {objective.model_dump_json()}"
    return Asked(
        objective.takes, objective.reads, objective.splits, objective.longest_text, key, weighs=objective.weighs
    )


def drawn_rows(drawing: Drawing, rows: Sequence[Example]) -> Sequence[Example]:
    """Training rows as they are in the first epoch; of a large set, each drawn when it is asked for."""
    return remade(lambda text: drawing(text, 0), rows)


def drawing_of(
    recipe: Recipe, objective: Objective, tokenizer: PreTrainedTokenizerBase, answer_start: int | None
) -> Drawing | None:
    """What the objective makes of texts in each epoch; None where they stay as they are."""
    corrupt = objective.corruption(Vocabulary(tokenizer, answer_start))
    return None if corrupt is None else Drawing(corrupt, recipe.seed)


def check_kind(objective: Objective, family: Family, model_type: str) -> None:
    """Raise RecipeError if an objective is not for models of a family."""
    if family.kind not in objective.kinds:
        raise RecipeError(
            f"objective.kind {kind_of(type(objective))} is for models of the kind {' or '.join(objective.kinds)}, and "
            f"{model_type!r} is of the kind {family.kind}.",
            "Choose another model, or another objective.",
            field="objective.kind",
        )


def announce_gate(gate: GateReport, announce: Announce) -> None:
    """Say what the gate found, and show rows with what will be learned of them between ⟦ and ⟧."""
    for note in gate.notes:
        announce(note)
    if gate.classes:
        of_each = ", ".join(f"{name} {count:,}" for name, count in gate.classes)
        announce(f"{gate.num_learned:,} labels will be learned ({of_each}), those between ⟦ and ⟧:")
    elif gate.ranks:
        announce(
            f"{gate.num_learned:,} answers of {gate.num_rows:,} rows will be ranked, their places between ⟦ and ⟧:"
        )
    elif gate.num_learned == 0:
        announce(
            f"{gate.num_rows:,} prompts will be answered, of {gate.mean_row:.0f} tokens on average; the first are:"
        )
    else:
        announce(f"{gate.num_learned:,} of {gate.num_tokens:,} tokens will be learned, those between ⟦ and ⟧:")
    for row in gate.rows:
        announce(marked_text(row))


def placed_rows(dataset: Dataset, num_virtual: int, before_answer: int = 0, *, draws: bool = False) -> Dataset:
    """The rows behind the placeholders for the method's virtual tokens, which an encoder-decoder's answers have too.

    draws: whether the training rows are yet to be drawn, and so stay as they are.
    """
    if num_virtual == 0:
        return dataset

    def placed(rows: Sequence[Example]) -> Sequence[Example]:
        return remade(lambda row: with_placeholders(row, num_virtual, before_answer), rows)

    train = dataset.train if draws else placed(dataset.train)
    return replace(dataset, train=train, validation=placed(dataset.validation))


def placed_draws(drawing: Drawing, num_virtual: int, before_answer: int) -> Vary:
    """The same for rows that are drawn."""
    return lambda text, epoch: with_placeholders(drawing(text, epoch), num_virtual, before_answer)


def check_lengths(dataset: Dataset, config: PreTrainedConfig, num_virtual: int = 0) -> None:
    """Raise GateRefusal for a row longer than the model's positions reach, or than they are the same in any batch."""
    longest = longest_row(config)
    counted = f" ({num_virtual} of them virtual)" if num_virtual else ""
    if longest is None:
        return
    rows = joined([dataset.train, dataset.validation])
    beyond = np.flatnonzero(facts_of(rows)["longest"] > longest)
    if len(beyond):
        example = rows[int(beyond[0])]
        raise GateRefusal(
            f"This row has {example.longest_stream} tokens{counted}, but the model's positions serve {longest}.",
            f"Set data.max_length to {longest - num_virtual}, and data.too_long to truncate or drop.",
            file=example.origin.file,
            line=example.origin.line,
        )
