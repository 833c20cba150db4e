"""The models that a recipe's objective hears beside its own, made ready: loaded, or asked once and let go of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import LuthierError, RecipeError
from luthier.methods import ADAPTER
from luthier.models.fingerprints import fingerprint_files
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.objectives import Companion
from luthier.objectives.contract import Kept
from luthier.ops.workers import Workers, worker_count
from luthier.prepared import Prepared
from luthier.recipe import Recipe
from luthier.recipe.base import fast_of
from luthier.recipe.companions import base_of, named, run_of, run_recipe, told_of
from luthier.recipe.provenance import dataset_sha256
from luthier.store.cache import cache_root
from luthier.store.files import locked, read_json, remove_folder, write_json
from luthier.training.companions import (
    FOLDER,
    AtHand,
    Companions,
    KeptSay,
    Logprobs,
    Speaker,
    Voice,
    Words,
    ask_once,
    by_document,
    kept_row_bytes,
)
from luthier.training.memory import give_back
from luthier.tuned import load_attached, load_tuned

Announce = Callable[[str], None]
_MADE_BY = "made_by.json"
_FEWER_WORDS = "set objective.top_k lower"


@dataclass(frozen=True)
class Hearing:
    """The companions of a run, and the hash of each one's weights by its role."""

    companions: Companions
    sha256: dict[str, str]


@dataclass(frozen=True)
class Loaded:
    """A companion's model, the adapter that it speaks under, and the hash of its weights and that adapter's."""

    model: LanguageModel
    adapter: str | None
    sha256: str


def hear(recipe: Recipe, prepared: Prepared, folder: Path, announce: Announce) -> Hearing:
    """Make the companions of a recipe's objective ready, before the recipe's own model is loaded.

    folder: of the run, which keeps what they are asked once.
    """
    voices: dict[str, Voice] = {}
    sha256: dict[str, str] = {}
    for companion in prepared.objective.others:
        hearing = _kept if companion.kept is not None else _at_hand
        voices[companion.role], sha256[companion.role] = hearing(companion, recipe, prepared, folder, announce)
    return Hearing(Companions(voices), sha256)


def load_companion(companion: Companion, recipe: Recipe, announce: Announce) -> Loaded:
    """A companion's model: of a run, with what it learned. Raises as loading a model or a run does, at the companion's field."""
    with told_of(companion):
        return _loaded(companion, recipe, announce)


def _loaded(companion: Companion, recipe: Recipe, announce: Announce) -> Loaded:
    folder, device = run_of(companion), recipe.model.device
    announce(f"The {companion.role} is {named(companion).name}.")
    if folder is None:
        model = load_model(base_of(companion, device), announce, fast=fast_of(recipe))
        return Loaded(model, None, model.identity.sha256)
    own = run_recipe(companion, folder, device)
    if own.method.tunes_base:
        model = load_tuned(folder, own, announce)
        return Loaded(model, None, model.identity.sha256)
    model, _ = load_attached(folder, own, announce)
    files = sorted(path for path in (folder / own.method.output_folder).rglob("*") if path.is_file())
    learned = fingerprint_files(files, cache_root())
    return Loaded(model, ADAPTER, hashlib.sha256(f"{model.identity.sha256} {learned}".encode()).hexdigest())


def _speaker(loaded: Loaded, recipe: Recipe) -> Speaker:
    shares = recipe.training.fast.prefix and loaded.model.device.type == "cpu"
    return Speaker(loaded.model, loaded.adapter, shares)


def _at_hand(
    companion: Companion, recipe: Recipe, prepared: Prepared, folder: Path, announce: Announce
) -> tuple[Voice, str]:
    """A companion that stays in memory."""
    loaded = load_companion(companion, recipe, announce)
    return AtHand(_speaker(loaded, recipe), by_document(prepared.all_rows)), loaded.sha256


def _kept(
    companion: Companion, recipe: Recipe, prepared: Prepared, folder: Path, announce: Announce
) -> tuple[Voice, str]:
    """What a companion says of all rows, which it is asked now unless it was before."""
    kept = companion.kept
    assert kept is not None
    place = folder / FOLDER / companion.role if kept.folder is None else Path(kept.folder)
    with locked(place, announce=announce):
        return _kept_in(place, kept, companion, recipe, prepared, announce)


def _kept_in(
    place: Path, kept: Kept, companion: Companion, recipe: Recipe, prepared: Prepared, announce: Announce
) -> tuple[Voice, str]:
    """The same, of a folder that nobody else writes."""
    num_words = min(prepared.num_words, prepared.companion_words[companion.role])
    asked = {
        "rows": dataset_sha256(prepared.dataset),
        "count": kept.count,
        "temperature": kept.temperature,
        "words": num_words,
        "model": named(companion).name,
    }
    before = _made_by(place)
    if before is not None and {**before, "sha256": None} == {**asked, "sha256": None}:
        say = KeptSay(place, Words(kept, num_words), prepared.all_rows, _FEWER_WORDS)
        if not say.missing:
            announce(f"What the {companion.role} says of the rows is kept from before; it is not loaded.")
            return say, str(before["sha256"])
        say.close()
    elif kept.folder is not None:
        _check_free(place, before, asked)
    loaded = load_companion(companion, recipe, announce)
    if before != {**asked, "sha256": loaded.sha256}:
        if kept.folder is not None and before is not None:
            _check_free(place, before, {**asked, "sha256": loaded.sha256})
        remove_folder(place)
        write_json(place / _MADE_BY, {**asked, "sha256": loaded.sha256})
    say = KeptSay(place, Words(kept, num_words), prepared.all_rows, _FEWER_WORDS)
    gigabytes = sum(example.num_learned for example in prepared.all_rows) * kept_row_bytes(kept) / 1e9
    until = "until the run ends" if kept.folder is None else f"in {kept.folder}"
    announce(
        f"The {companion.role} is asked once for all rows; its {kept.count} likeliest words at each learned token are kept "
        f"{until}, {gigabytes:.2f} GB."
    )
    device = loaded.model.device
    with Workers(worker_count(recipe.training.workers, device)) as workers:
        ask_once(say, _speaker(loaded, recipe), prepared.all_rows, recipe.training.tokens_per_micro_batch, workers)
    sha256 = loaded.sha256
    del loaded
    give_back(device)
    return say, sha256


_DIFFERENCES = {
    "rows": "other rows, or a chat template, a length or a split that makes others of them",
    "count": "objective.top_k",
    "temperature": "objective.temperature",
    "words": "how many words the models have",
    "model": "the teacher's name",
    "sha256": "the teacher's weights",
}


def _check_free(place: Path, before: dict[str, object] | None, asked: dict[str, object]) -> None:
    """Raise RecipeError if a folder of the user's holds something else than what is asked."""
    if before is None:
        if place.is_dir() and any(place.iterdir()):
            raise RecipeError(
                f"{place} holds something else than what a teacher said.",
                "Name a folder that is not there yet.",
                field="objective.stored",
            )
        return
    differing = [words for key, words in _DIFFERENCES.items() if key in asked and before.get(key) != asked[key]]
    raise RecipeError(
        f"What {place} holds was made otherwise: {'; '.join(differing)}.",
        "Name another folder, or remove it, so that the teacher is asked again.",
        field="objective.stored",
    )


def hear_reference(
    hearing: Hearing, recipe: Recipe, prepared: Prepared, model: LanguageModel, folder: Path, announce: Announce
) -> Companions:
    """The companions with the model's own reference, where the objective hears it; the method is attached already."""
    roles = [companion.role for companion in prepared.objective.companions if companion.model is None]
    if not roles:
        return hearing.companions
    (role,) = roles
    rows, shares = prepared.all_rows, recipe.training.fast.prefix and model.device.type == "cpu"
    reference = recipe.method.reference(model, recipe.seed, fast=recipe.training.fast.lora)
    if reference is not None:
        by_whom = "the base" if reference.adapter is None else "a frozen copy of what it begins with"
        announce(f"The {role} is {by_whom}.")
        voice: Voice = AtHand(Speaker(model, reference.adapter, shares), by_document(rows))
        return Companions({**hearing.companions.voices, role: voice})
    place = folder / FOLDER / role
    made_by = {"rows": dataset_sha256(prepared.dataset), "model": model.identity.sha256}
    if _made_by(place) != made_by:
        remove_folder(place)
        write_json(place / _MADE_BY, made_by)
    say = KeptSay(place, Logprobs(), rows)
    if say.missing:
        announce(f"The {role} is the model as it begins: what it says of the rows is kept before step 1.")
        with Workers(worker_count(recipe.training.workers, model.device)) as workers:
            ask_once(say, Speaker(model, None, shares), rows, recipe.training.tokens_per_micro_batch, workers)
    return Companions({**hearing.companions.voices, role: say})


def _made_by(place: Path) -> dict[str, object] | None:
    """What a folder of kept words says that they are; None if it says nothing."""
    try:
        said = read_json(place / _MADE_BY)
    except LuthierError:
        return None
    return said if isinstance(said, dict) else None
