"""A recipe's rows made ready for its model: read, judged by the gate, and laid out for its method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from luthier.corruption.vocabulary import Vocabulary
from luthier.data.apart import laid_apart
from luthier.data.dataset import Asked, Dataset, MakeExample, load_dataset
from luthier.data.drawn import Drawing, Vary
from luthier.data.gate import GateReport, Rules, check_gate, marked_text
from luthier.data.placeholders import with_placeholders
from luthier.errors import GateRefusal, RecipeError
from luthier.models.families import Family, family_of
from luthier.models.loading import check_head
from luthier.models.positions import longest_row
from luthier.models.sources import locate, read_answer_start, read_config, read_tokenizer, with_new_tokens
from luthier.objectives import Objective, kind_of
from luthier.recipe import Recipe
from luthier.recipe.companions import check_companion, told_of
from luthier.types import Example

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, read and passed by the gate; and its objective, with what the rows settle.

    drawing: what makes of the training rows the examples of each epoch, where the objective draws them; those held out are
    drawn already. num_words: how many words the model has. companion_words: how many each companion of the objective has, by
    its role.
    """

    dataset: Dataset
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    gate: GateReport
    drawing: Drawing | None = None
    num_words: int = 0
    companion_words: Mapping[str, int] = field(default_factory=dict)

    @property
    def all_rows(self) -> tuple[Example, ...]:
        """The training examples and those held out."""
        return (*self.dataset.train, *self.dataset.validation)

    @property
    def first_rows(self) -> tuple[Example, ...]:
        """The training examples of the first epoch."""
        return self.dataset.train if self.drawing is None else self.drawing.of_all(self.dataset.train, 0)


def check_recipe(recipe: Recipe, announce: Announce) -> Prepared:
    """Read the recipe's data and let the gate judge it, without loading the model's weights."""
    source = locate(recipe.model, announce)
    tokenizer = read_tokenizer(source)
    config = with_new_tokens(read_config(source), source, tokenizer)
    answer_start = read_answer_start(source, config)
    companions = [
        (each, check_companion(each, recipe.model.device, config, tokenizer, answer_start, announce))
        for each in recipe.objective.others
    ]
    dataset, objective = read_dataset(recipe, config, tokenizer, announce, answer_start)
    drawing = drawing_of(recipe, objective, tokenizer, answer_start)
    drawn = dataset if drawing is None else replace(dataset, train=drawing.of_all(dataset.train, 0))
    check_lengths(drawn, config)
    rules = Rules(learns_ends=objective.learns_ends, in_place=objective.in_place)
    gate = check_gate(drawn, int(config.vocab_size), rules, marks_of(config))
    for companion, own in companions:
        with told_of(companion):
            check_lengths(drawn, own)
    words = {companion.role: int(own.vocab_size) for companion, own in companions}
    return Prepared(dataset, objective, tokenizer, gate, drawing, int(config.vocab_size), words)


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
        maker_of(objective, family),
        announce,
        asked=asked_of(objective),
        of_labels=(lambda labels: maker_of(objective.settled(labels), family))
        if objective.takes in ("labels", "tags")
        else None,
        pooled=family.pooled,
        answer_start=answer_start,
    )
    objective = objective.settled(dataset.labels)
    drawing = drawing_of(recipe, objective, tokenizer, answer_start)
    if drawing is not None:
        dataset = replace(dataset, validation=tuple(drawing.held_out(text) for text in dataset.validation))
    return dataset, objective


def maker_of(objective: Objective, family: Family) -> MakeExample:
    """What makes the objective's examples for models of a family: where rows cannot share tokens, answers to one prompt stand apart."""
    if family.layout == "packed":
        return objective.example
    return lambda rendered, document, origin: laid_apart(objective.example(rendered, document, origin))


def asked_of(objective: Objective) -> Asked:
    """What an objective asks of rows."""
    return Asked(objective.takes, objective.reads, objective.splits, objective.longest_text, objective.beside_others)


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
    else:
        announce(f"{gate.num_learned:,} of {gate.num_tokens:,} tokens will be learned, those between ⟦ and ⟧:")
    for row in gate.rows:
        announce(marked_text(row))


def placed_rows(dataset: Dataset, num_virtual: int, before_answer: int = 0, *, draws: bool = False) -> Dataset:
    """The rows behind the placeholders for the method's virtual tokens, which an encoder-decoder's answers have too.

    draws: whether the training rows are yet to be drawn, and so stay as they are.
    """
    train, validation = (
        tuple(with_placeholders(row, num_virtual, before_answer) for row in rows)
        for rows in (() if draws else dataset.train, dataset.validation)
    )
    return replace(dataset, train=dataset.train if draws else train, validation=validation)


def placed_draws(drawing: Drawing, num_virtual: int, before_answer: int) -> Vary:
    """The same for rows that are drawn."""
    return lambda text, epoch: with_placeholders(drawing(text, epoch), num_virtual, before_answer)


def check_lengths(dataset: Dataset, config: PreTrainedConfig, num_virtual: int = 0) -> None:
    """Raise GateRefusal for a row longer than the model's positions reach, or than they are the same in any batch."""
    longest = longest_row(config)
    counted = f" ({num_virtual} of them virtual)" if num_virtual else ""
    for example in (*dataset.train, *dataset.validation):
        if longest is not None and example.longest_stream > longest:
            raise GateRefusal(
                f"This row has {example.longest_stream} tokens{counted}, but the model's positions serve {longest}.",
                f"Set data.max_length to {longest - num_virtual}, and data.too_long to truncate or drop.",
                file=example.origin.file,
                line=example.origin.line,
            )
