"""Makes the copies: draws rows, plants a fault in each, and writes down what was done where.

Every row holds one fault at most, and every other row is the same byte for byte. The draws depend on the seed alone.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from bench.planted_faults import answers, chat, copies, encoding, foreign, labels, markup, private, shape
from bench.planted_faults.faults import Change, Draw, Way
from bench.planted_faults.forms import CleanFile, Record, read_clean
from bench.planted_faults.known import Notes, known_faults, known_leaks
from bench.planted_faults.sources import SOURCES, Source

KINDS: dict[str, tuple[Way, ...]] = {
    **encoding.WAYS, **shape.WAYS, **copies.WAYS, **answers.WAYS, **chat.WAYS, **foreign.WAYS, **markup.WAYS, **private.WAYS,
    **labels.WAYS,
}  # fmt: skip
FAULTS_PER_KIND = 12
MANIFEST = "manifest.jsonl"

_FOREIGN = "alpaca_demo/alpaca_zh_sample.jsonl"
_FOREIGN_LETTERS = 40
_DRAWS = 600


class CannotPlant(Exception):
    """The clean files are not there, or offer no row for a fault."""


@dataclass(frozen=True)
class Place:
    """Some lines of a file; row numbers in a JSON document."""

    file: str
    line: int
    last_line: int


@dataclass(frozen=True)
class Fault:
    """One line of the manifest. `field` is empty where the whole row is at fault; `also` may be named as well; `partner` is
    the row that it copies or contradicts."""

    file: str
    line: int
    last_line: int
    field: str
    kind: str
    what: str
    also: tuple[str, ...] = ()
    partner: Place | None = None


@dataclass(frozen=True)
class Planted:
    """What was made: the faults, and of each file that is to be written the bytes of the clean one and of its copy."""

    faults: tuple[Fault, ...]
    clean: dict[str, bytes]
    copies: dict[str, bytes]


@dataclass(frozen=True)
class Survey:
    """The clean files, the indexes of their rows that are as they should be, and texts in another language."""

    files: dict[str, CleanFile]
    free: dict[str, list[int]]
    foreign: tuple[str, ...]


@dataclass
class _Work:
    """What is planted so far: the rows still free, the new bytes of those that were changed, and the faults."""

    ground: Survey
    free: dict[str, list[int]]
    changes: dict[str, dict[int, bytes]] = field(default_factory=lambda: defaultdict(dict))
    faults: list[Fault] = field(default_factory=list)


def read_sources(data: Path, sources: Sequence[Source] = SOURCES) -> dict[str, CleanFile]:
    """The clean files, and those that they are validated on, by their place. Raises: CannotPlant where one is not there."""
    found = {}
    for source in sources:
        for place in filter(None, (source.place, source.validation)):
            if not (data / place).is_file():
                raise CannotPlant(f"{data / place} is not there; give the folder of the data sets with --data.")
            found[place] = read_clean(data / place, source.form)
    return found


def notes_on(files: dict[str, CleanFile]) -> dict[str, Notes]:
    """What is wrong with the clean files, by their place."""
    notes: dict[str, Notes] = {}
    for source in SOURCES:
        if source.place not in files:
            continue
        notes[source.place] = known_faults(source, files[source.place])
        if source.validation is not None:
            train, validation = files[source.place], files[source.validation]
            notes[source.validation] = known_faults(source, validation)
            for place, leaks in zip(
                (source.place, source.validation), known_leaks(source, train, validation), strict=True
            ):
                for index, found in leaks.items():
                    notes[place].setdefault(index, []).extend(found)
    return notes


def survey(data: Path) -> Survey:
    """What faults are planted in. Raises: CannotPlant."""
    files = read_sources(data)
    notes = notes_on(files)
    free = {
        place: [
            index
            for index, record in enumerate(file.records)
            if index not in notes[place] and file.form.write(record.values, record.data) == record.data
        ]
        for place, file in files.items()
    }
    lines = (data / _FOREIGN).read_text("utf-8").splitlines()
    foreign = (json.loads(line)["output"] for line in lines)
    return Survey(files, free, tuple(text for text in foreign if len(text) >= _FOREIGN_LETTERS))


def plant(ground: Survey, seed: int) -> Planted:
    """The faults of every kind, in memory. Raises: CannotPlant."""
    files = ground.files
    work = _Work(ground, {place: list(free) for place, free in ground.free.items()})
    for kind, ways in KINDS.items():
        for number in range(FAULTS_PER_KIND):
            _plant_one(work, kind, ways[number % len(ways)], Random(f"{seed}/{kind}/{number}"))
    return Planted(
        tuple(work.faults),
        {place: file.changed({}) for place, file in files.items()},
        {place: file.changed(work.changes[place]) for place, file in files.items()},
    )


def _plant_one(work: _Work, kind: str, way: Way, rng: Random) -> None:
    """One fault, in a file that has few of its kind."""
    by_kind = Counter((fault.kind, fault.file) for fault in work.faults)
    by_file = Counter(fault.file for fault in work.faults)
    sources = list(way.sources)
    rng.shuffle(sources)

    def file_of(source: Source) -> str:
        place = source.validation if way.into_validation else source.place
        assert place is not None
        return place

    sources.sort(key=lambda source: (by_kind[kind, file_of(source)], by_file[file_of(source)]))
    for source in sources:
        for _ in range(_DRAWS):
            if _try_row(work, kind, way, source, file_of(source), rng):
                return
    raise CannotPlant(f"no row was found for a fault of the kind {kind} in {', '.join(map(file_of, sources))}.")


def _try_row(work: _Work, kind: str, way: Way, source: Source, place: str, rng: Random) -> bool:
    free, file = work.free[source.place], work.ground.files[source.place]
    if not free:
        return False
    draw = Draw(rng, source, file, rng.choice(free), free, work.ground.foreign)
    change = way.plant(draw)
    if change is None:
        return False
    index = rng.choice(work.free[place]) if way.into_validation else draw.index
    was = work.ground.files[place].records[index]
    data = _new_data(source, work.ground.files[place], was, change)
    if not _can_stand(work.ground.files[place], was, data):
        return False
    work.changes[place][index] = data
    work.free[place].remove(index)
    partner = None
    if change.partner is not None:
        free.remove(change.partner)
        other = file.records[change.partner]
        partner = Place(source.place, other.number, other.last)
    fault = Fault(place, was.number, was.last, change.field, kind, change.what, change.also, partner)
    work.faults.append(fault)
    return True


def _new_data(source: Source, file: CleanFile, was: Record, change: Change) -> bytes:
    """The row's new bytes; a copied row keeps the number that its place has."""
    if change.data is not None:
        return change.data
    assert change.values is not None
    keys = {key: was.values[key] for key in source.keys if key in was.values and key in change.values}
    return file.form.write(change.values | keys, was.data)


def _can_stand(file: CleanFile, was: Record, data: bytes) -> bool:
    """Whether it is another row, and all rows after it keep their lines."""
    return data != was.data and (not file.form.has_lines or data.count(b"\n") == was.data.count(b"\n"))


def check_free(out: Path) -> None:
    """Raises: CannotPlant, unless the folder is empty or does not exist."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CannotPlant(f"{out} is not an empty folder; give one that is, or one that does not exist yet.")


def write_planted(planted: Planted, out: Path) -> None:
    """The originals, the copies and the manifest into a folder. Raises: CannotPlant where something is there already."""
    check_free(out)
    for name, files in (("clean", planted.clean), ("planted", planted.copies)):
        for place, content in files.items():
            path = out / name / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (out / MANIFEST).write_text("".join(f"{json.dumps(asdict(fault))}\n" for fault in planted.faults), "utf-8")


def read_manifest(out: Path) -> tuple[Fault, ...]:
    """The faults that were planted. Raises: CannotPlant where there is no manifest."""
    path = out / MANIFEST
    if not path.is_file():
        raise CannotPlant(f"{path} is not there; plant first: python -m bench.planted_faults plant {out}")
    faults = []
    for line in path.read_text("utf-8").splitlines():
        values = json.loads(line)
        partner = values.pop("partner")
        also = tuple(values.pop("also"))
        faults.append(Fault(**values, also=also, partner=None if partner is None else Place(**partner)))
    return tuple(faults)
