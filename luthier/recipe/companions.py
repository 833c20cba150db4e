"""The models that a recipe's objective hears beside its own: where they come from, and whether they go with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from luthier.errors import LuthierError, RecipeError
from luthier.models.families import family_of
from luthier.models.settings import ModelSettings
from luthier.models.sources import Announce, locate, read_answer_start, read_config, read_tokenizer, with_new_tokens
from luthier.objectives import Companion, kind_of
from luthier.recipe.loading import recipe_of_run
from luthier.recipe.settings import Recipe
from luthier.store.places import expanded
from luthier.store.runs import is_run


def named(companion: Companion) -> ModelSettings:
    """The model that a companion is, which is not the objective's own."""
    assert companion.model is not None, "the objective's own model is not looked for"
    return companion.model


def run_of(companion: Companion) -> Path | None:
    """The folder of the run that a companion came out of; None for a base model."""
    folder = expanded(named(companion).name)
    return folder if is_run(folder) else None


def run_recipe(companion: Companion, folder: Path, device: str) -> Recipe:
    """The recipe of a companion's run, with the number format and the device that the companion is given."""
    recipe = recipe_of_run(folder)
    if not recipe.objective.writes:
        raise RecipeError(
            f"The run {folder} learned {kind_of(type(recipe.objective))}, so its model writes no text.",
            "Name a model that writes, or a run that learned to.",
            field=companion.field,
        )
    return recipe.model_copy(update={"model": _placed(recipe.model, companion, device)})


def base_of(companion: Companion, device: str) -> ModelSettings:
    """The settings of a companion's weights; of a run's adapter, those of its base. device: where it is if it does not say."""
    folder = run_of(companion)
    if folder is None:
        return _placed(named(companion), companion, device)
    recipe = run_recipe(companion, folder, device)
    return recipe.model.at(folder / recipe.method.output_folder) if recipe.method.tunes_base else recipe.model


def _placed(settings: ModelSettings, companion: Companion, device: str) -> ModelSettings:
    """Model settings with the companion's own number format and device, else the student's device."""
    own = named(companion)
    dtype = settings.dtype if own.dtype == "auto" else own.dtype
    return settings.model_copy(update={"dtype": dtype, "device": device if own.device == "auto" else own.device})


@contextmanager
def told_of(companion: Companion) -> Iterator[None]:
    """Within, faults of the model are told at the field that names the companion."""
    try:
        yield
    except LuthierError as error:
        if error.field is None or error.field.split(".")[0] in ("model", "objective", "quantization"):
            error.field = companion.field
        raise


def check_companion(
    companion: Companion,
    device: str,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    answer_start: int | None,
    announce: Announce,
) -> PreTrainedConfig:
    """The companion's config. Raises RecipeError if it does not speak the words of the model of this config and tokenizer.

    answer_start: the token that the model's decoder begins with; None for models of one stream.
    """
    with told_of(companion):
        source = locate(base_of(companion, device), announce, weights=False)
        own_tokenizer = read_tokenizer(source)
        own = with_new_tokens(read_config(source), source, own_tokenizer)
    kinds = [family_of(each.model_type).kind for each in (own, config)]
    if kinds[0] != kinds[1]:
        raise RecipeError(
            f"The {companion.role} is of the kind {kinds[0]}, and the model of the kind {kinds[1]}: they do not read alike.",
            f"Choose a {companion.role} of the kind {kinds[1]}.",
            field=companion.field,
        )
    difference = _difference(own_tokenizer, tokenizer)
    if difference is None and read_answer_start(source, own) != answer_start:
        difference = "their decoders begin with different tokens"
    if difference is not None:
        raise RecipeError(
            f"The {companion.role} has not the model's tokens, so what it says cannot be compared: {difference}.",
            f"Choose a {companion.role} of the same family, with the same tokenizer.",
            field=companion.field,
        )
    check_kept(companion, min(int(own.vocab_size), int(config.vocab_size)))
    return own


def check_kept(companion: Companion, num_words: int) -> None:
    """Raise RecipeError if as many words are to be kept as there are."""
    if companion.kept is not None and companion.kept.count >= num_words:
        raise RecipeError(
            f"objective.top_k is {companion.kept.count}, and there are {num_words} words: none would be left out.",
            "Lower it, or leave it out, so that the teacher is asked at each step.",
            field="objective.top_k",
        )


def _difference(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> str | None:
    """What tells a companion's words from the model's; None if nothing does."""
    words, others = own.get_vocab(), other.get_vocab()
    if words == others:
        return None
    for word in sorted({*words, *others}, key=lambda word: (words.get(word, others.get(word)), word)):
        if words.get(word) != others.get(word):
            places = [("none" if number is None else str(number)) for number in (words.get(word), others.get(word))]
            return f"of {len(words):,} and {len(others):,} tokens, {word!r} has number {places[0]} there and {places[1]} here"
    raise AssertionError("two vocabularies that differ do so in some word")
