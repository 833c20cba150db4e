"""A run carried out again from its bundle: did the bits come out the same, or else the numbers?

What could make a difference is named first: versions, processor, threads, device. Changed data and another model are no
replay and are refused before anything is computed. Bits are those of the weights that the run gave away; numbers are the
losses of its steps, training and held out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from luthier.errors import RunMismatch, UsageError
from luthier.models.loading import choose_device
from luthier.recipe import Recipe, dump_recipe, make_recipe
from luthier.recipe.provenance import environment
from luthier.recipe.settings import Provenance
from luthier.recipe.yaml_text import parse_yaml
from luthier.run import OnStep, resume_run
from luthier.store.files import make_folder, remove_folder, sha256_file, write_text
from luthier.store.places import expanded
from luthier.store.runs import RECIPE, RESOLVED, read_metrics
from luthier.studies.bundles import Bundle, hashes_of, unpack_data
from luthier.training.run_folder import is_free

Announce = Callable[[str], None]
Verdict = Literal["same bits", "same numbers", "other numbers"]

TOLERANCE = 0.01
"""How far a loss may lie from that of the first run, as a share of it, to count as the same number."""

_DATA = "data"
_WEIGHTS = ".safetensors"
_LOSSES = ("loss", "validation_loss")


@dataclass(frozen=True)
class Difference:
    """Something that was otherwise when the run was made: its name, what it was, and what it is."""

    what: str
    then: str
    now: str


@dataclass(frozen=True)
class Farthest:
    """The loss that lies farthest from the first run's: of which step, what it was and is, and the distance as a share of it."""

    measure: str
    step: int
    then: float
    now: float
    share: float


@dataclass(frozen=True)
class Replay:
    """What a replay came to.

    differences: what was otherwise, before anything was computed. other_files: what of the result has other bytes. farthest:
    None where no step could be compared.
    """

    run: Path
    verdict: Verdict
    differences: tuple[Difference, ...]
    other_files: tuple[str, ...]
    steps: tuple[int, int]
    farthest: Farthest | None
    tolerance: float

    @property
    def sentence(self) -> str:
        """The outcome in a sentence."""
        if self.verdict == "same bits":
            return "The same bits: every weight of the result is that of the first run."
        if self.steps[0] != self.steps[1]:
            return f"Other numbers: {self.steps[1]} steps were made, and {self.steps[0]} the first time."
        far = self.farthest
        assert far is not None
        off = (
            f"the {far.measure} of step {far.step} is {far.now:.6g} and was {far.then:.6g}, {far.share:.2g} of it apart"
        )
        within = "within" if self.verdict == "same numbers" else "more than"
        return (
            f"{self.verdict.capitalize()}, other bits: at most, {off} ({within} the tolerance of {self.tolerance:g})."
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**asdict(self), "run": str(self.run), "sentence": self.sentence}


def replay(
    bundle: Bundle,
    out: Path,
    announce: Announce,
    on_step: OnStep,
    *,
    overrides: Sequence[str] = (),
    tolerance: float = TOLERANCE,
) -> Replay:
    """Carry out a bundle's run in a new folder, and compare.

    overrides: settings to change, such as where the model is. Raises: UsageError for a folder in use; NotFound for data or a
    model that is not there; RunMismatch, naming them, for data or a model that is another.
    """
    if not is_free(out):
        raise UsageError(f"{out} is not empty.", "Choose another folder with --out.")
    try:
        recipe, begun = _recipe(bundle, out, overrides)
    except BaseException:
        remove_folder(out / _DATA)  # a folder that holds something would be taken for a run's
        raise
    device = choose_device(recipe.model.device)
    differences = (
        *(Difference("recipe", "", f"{override} (--set)") for override in overrides),
        *differences_of(bundle.manifest.environment, environment(device)),
    )
    for each in differences:
        announce(f"Otherwise than then: {each.what} is {each.now}" + (f", and was {each.then}." if each.then else "."))
    make_folder(out)
    write_text(out / RECIPE, dump_recipe(recipe))
    write_text(out / RESOLVED, dump_recipe(recipe.model_copy(update={"provenance": begun})))
    with _threads(bundle.manifest.environment.get("threads"), device, announce):
        resume_run(out, announce=announce, on_step=on_step)
    return _compared(bundle, out, differences, tolerance)


def _recipe(bundle: Bundle, out: Path, overrides: Sequence[str]) -> tuple[Recipe, Provenance]:
    """The recipe with the data where they are now, and what the run was made from."""
    values = parse_yaml(bundle.recipe, str(bundle.path)).values
    begun = Provenance.model_validate(values.pop("provenance"))
    places = unpack_data(bundle, out / _DATA)
    moved = _with_places(values, places)
    recipe = make_recipe(moved, overrides)
    if not any(override.startswith("data.") for override in overrides):
        _check_files(bundle, places)
    return recipe, begun


def _with_places(values: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A recipe's values with data that were unpacked at their places."""

    def moved(named: Any) -> Any:
        if isinstance(named, str):
            return places.get(named, named)
        if isinstance(named, list):
            return [moved(each) for each in named]
        return {**named, "path": moved(named["path"])}

    data = values["data"]
    return {**values, "data": {**data, "train": moved(data["train"]), "validation": moved(data["validation"])}}


def _check_files(bundle: Bundle, places: Mapping[str, str]) -> None:
    """Raise RunMismatch, naming the file, if data that lie where they lay have other contents."""
    for named in bundle.manifest.data:
        path = expanded(named.name)
        if named.name in places or not named.is_file or not path.is_file():
            continue  # of folders and patterns, whose files may have come and gone, the rows are compared as a whole
        (then,) = named.sha256.values()
        now = sha256_file(path)
        if now != then:
            raise RunMismatch(
                f"{path} is not what the run learned from: its SHA-256 was {then[:12]}…, and is now {now[:12]}….",
                "Put the old file back, name it with --set data.train=FILE, or write the bundle with --with-data.",
                file=str(path),
                field="data",
            )


def differences_of(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Difference, ...]:
    """In what two environments differ, apart from the number of threads, which a replay sets."""
    names = [name for name in dict.fromkeys((*then, *now)) if name != "threads"]
    return tuple(
        Difference(name, str(then.get(name, "not noted")), str(now.get(name, "not noted")))
        for name in names
        if then.get(name) != now.get(name)
    )


@contextmanager
def _threads(count: object, device: torch.device, announce: Announce) -> Iterator[None]:
    """Within, on a CPU, torch computes with so many threads: sums are split among them, and round with their number."""
    before = torch.get_num_threads()
    if device.type != "cpu" or not isinstance(count, int) or count < 1 or count == before:
        yield
        return
    announce(f"Computing with {count} thread{'' if count == 1 else 's'}, as then.")
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ── comparison ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _compared(bundle: Bundle, out: Path, differences: tuple[Difference, ...], tolerance: float) -> Replay:
    then, now = bundle.manifest.result, hashes_of(out / bundle.manifest.output)
    others = tuple(sorted(name for name in {*then, *now} if then.get(name) != now.get(name)))
    steps = read_metrics(out)
    farthest = farthest_apart(bundle.metrics, steps)
    numbers = (bundle.manifest.steps, int(steps[-1]["step"]))
    has_same_bits = not any(name.endswith(_WEIGHTS) for name in others)
    has_same_numbers = numbers[0] == numbers[1] and farthest is not None and farthest.share <= tolerance
    verdict: Verdict = "same bits" if has_same_bits else "same numbers" if has_same_numbers else "other numbers"
    return Replay(out, verdict, differences, others, numbers, farthest, tolerance)


def farthest_apart(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Farthest | None:
    """The loss that lies farthest from what it was, over the steps that both have; None if they have none in common."""
    by_step = {int(line["step"]): line for line in now}
    found: list[Farthest] = []
    for line in then:
        other = by_step.get(int(line["step"]), {})
        for measure in _LOSSES:
            if measure in line and measure in other:
                before, after = float(line[measure]), float(other[measure])
                share = abs(after - before) / abs(before) if before else (0.0 if after == before else math.inf)
                found.append(Farthest(measure, int(line["step"]), before, after, share))
    return max(found, key=lambda each: each.share, default=None)
