"""A recipe's rows made ready for its model: read, judged by the gate, and laid out for its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from luthier.data.dataset import Dataset, load_dataset
from luthier.data.gate import GateReport, check_gate, marked_text
from luthier.data.placeholders import with_placeholders
from luthier.errors import GateRefusal
from luthier.models.families import family_of
from luthier.models.loading import check_head
from luthier.models.positions import longest_row
from luthier.models.sources import locate, read_answer_start, read_config, read_tokenizer, with_new_tokens
from luthier.objectives import Objective
from luthier.recipe import Recipe

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, read and passed by the gate; and its objective, with what the rows settle."""

    dataset: Dataset
    objective: Objective
    tokenizer: PreTrainedTokenizerBase
    gate: GateReport


def check_recipe(recipe: Recipe, announce: Announce) -> Prepared:
    """Read the recipe's data and let the gate judge it, without loading the model's weights."""
    source = locate(recipe.model, announce)
    tokenizer = read_tokenizer(source)
    config = with_new_tokens(read_config(source), source, tokenizer)
    dataset, objective = read_dataset(recipe, config, tokenizer, announce, read_answer_start(source, config))
    check_lengths(dataset, config)
    return Prepared(dataset, objective, tokenizer, check_gate(dataset, int(config.vocab_size)))


def read_dataset(
    recipe: Recipe,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    announce: Announce,
    answer_start: int | None,
) -> tuple[Dataset, Objective]:
    """The recipe's rows as its objective learns from them for a model of that config, and the objective settled.

    answer_start: the token that an encoder-decoder's decoder begins with; None for models of one stream.
    Raises RecipeError, too, if the model can have no head for the objective.
    """
    objective, family = recipe.objective, family_of(config.model_type)
    check_head(family, config.model_type, objective.takes == "labels")
    dataset = load_dataset(
        recipe.data,
        tokenizer,
        objective.example,
        announce,
        takes=objective.takes,
        of_labels=(lambda labels: objective.settled(labels).example) if objective.takes == "labels" else None,
        pooled=family.pooled,
        answer_start=answer_start,
    )
    return dataset, objective.settled(dataset.labels)


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


def placed_rows(dataset: Dataset, num_virtual: int, before_answer: int = 0) -> Dataset:
    """The rows behind the placeholders for the method's virtual tokens, which an encoder-decoder's answers have too."""
    train, validation = (
        tuple(with_placeholders(row, num_virtual, before_answer) for row in rows)
        for rows in (dataset.train, dataset.validation)
    )
    return replace(dataset, train=train, validation=validation)


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
