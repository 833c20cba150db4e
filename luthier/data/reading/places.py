"""What a user names, as files: a file, a folder, or a pattern such as data/*.jsonl."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.reading.class_names import FILES as CLASS_NAMES
from luthier.data.reading.content import PACKINGS
from luthier.data.reading.kinds import is_readable_ending
from luthier.data.reading.rows import Announce
from luthier.errors import DataError, NotFound
from luthier.store.places import expanded

_ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "contributing", "authors")
"""Beginnings of the names of files that tell about data."""

_MODEL = ("config.json", "model.safetensors", "tokenizer.json")
_MOST_NAMED = 8


@dataclass(frozen=True)
class Place:
    """A file, and what it is called: as the user wrote it, or the folder's name as written with the file's after it."""

    path: Path
    name: str


def is_pattern(name: str) -> bool:
    """Whether this stands for all files that fit it: it holds *, ? or [, and is not the name of a file."""
    return glob.has_magic(name) and not expanded(name).exists()


def called(name: str) -> str:
    """A name without folders and endings, for what is made from the data; a pattern is called as the folder it is in."""
    path = Path(name)
    while glob.has_magic(path.name):
        path = path.parent
    stem = Path(path.stem).stem if path.suffix.lower() in PACKINGS else path.stem
    return stem or "data"


def fits(pattern: str) -> bool:
    """Whether there is a file that fits a pattern."""
    return any(Path(path).is_file() for path in glob.iglob(str(expanded(pattern)), recursive=True))


def places_of(name: str, announce: Announce) -> list[Place]:
    """The files that a name stands for, at least one, by their names in order.

    announce: is told which they are, if there may be several, and what is passed over.
    Raises: NotFound; DataError, if there is no data in the folder, or it is no file.
    """
    path = expanded(name)
    if path.is_dir():
        return _in_folder(path, name, announce)
    if is_pattern(name):
        return _fitting(name, announce)
    if not path.exists():
        raise _missing(path, name)
    if not path.is_file():
        raise DataError("this is a pipe or a device, not a file.", "Write the rows to a file and give that.", file=name)
    return [Place(path, name)]


def _missing(path: Path, name: str) -> NotFound:
    folder = path.parent
    if not folder.is_dir():
        return NotFound(f"the folder {folder} does not exist.", "Check the path.", file=name)
    near = difflib.get_close_matches(path.name, [child.name for child in folder.iterdir()], n=3, cutoff=0.5)
    mend = f"Did you mean {' or '.join(str(folder / other) for other in near)}?" if near else "Check the path."
    return NotFound("there is no such file.", mend, file=name)


# ── folders and patterns ────────────────────────────────────────────────────────────────────────────────────────────


def _in_folder(folder: Path, name: str, announce: Announce) -> list[Place]:
    children = sorted(folder.iterdir())
    names = [child.name for child in children]
    if _MODEL[0] in names and (_MODEL[1] in names or _MODEL[2] in names):
        found = f"this is the folder of a model: it holds {_listed([file for file in _MODEL if file in names])}."
        raise DataError(found, "Give the file or folder with the rows; a model goes under `model`.", file=name)
    files = [child for child in children if child.is_file()]
    chosen = [child for child in files if _holds_data(child)]
    if not chosen:
        raise _no_data(children, name)
    shown = [child.name for child in chosen]
    passed = [child.name + ("/" if child.is_dir() else "") for child in children if child not in chosen]
    announce(f"{name}: {_told(shown, passed, 'in this folder')}")
    prefix = name.rstrip("/") + "/" if name.strip("/") else name
    return [Place(child, prefix + child.name) for child in chosen]


def _no_data(children: Sequence[Path], name: str) -> DataError:
    held = [child.name + ("/" if child.is_dir() else "") for child in children]
    mend = "Give the data file itself, or a folder that holds some."
    if any(child.is_dir() and not child.name.startswith(".") for child in children):
        mend = f"Give the data file itself, a folder that holds some, or {name.rstrip('/')}/** for all folders within."
    holds = f"It holds {_listed(held)}." if held else "It is empty."
    return DataError(f"this folder holds no file whose name says that it is data. {holds}", mend, file=name)


def _fitting(pattern: str, announce: Announce) -> list[Place]:
    found = sorted(path for path in map(Path, glob.glob(str(expanded(pattern)), recursive=True)) if path.is_file())
    if not found:
        raise NotFound(
            "no file fits this pattern.", "Check the path; ** stands for folders within folders.", file=pattern
        )
    is_chosen: Callable[[Path], bool] = _holds_data
    if not glob.has_magic(Path(pattern).suffix) and Path(pattern).suffix:
        is_chosen = _is_not_about  # an ending that is written out is what the user wants read
    chosen = [path for path in found if is_chosen(path)]
    passed = [str(path) for path in found if path not in chosen]
    if not chosen:
        mend = "Give the data file itself, or write its ending in the pattern."
        raise DataError(f"none of the files that fit is data by its name: {_listed(passed)}.", mend, file=pattern)
    announce(f"{pattern}: {_told([str(path) for path in chosen], passed, 'that fit')}")
    return [Place(path, str(path)) for path in chosen]


def _holds_data(path: Path) -> bool:
    return is_readable_ending(path) and _is_not_about(path) and path.name not in CLASS_NAMES


def _is_not_about(path: Path) -> bool:
    """Whether a file is no hidden one and none that tells about the others."""
    return not path.name.startswith(".") and not path.name.lower().startswith(_ABOUT)


def _told(chosen: Sequence[str], passed: Sequence[str], where: str) -> str:
    files = "the one data file" if len(chosen) == 1 else f"the {len(chosen)} data files"
    more = f" Passed over: {_listed(passed)}." if passed else ""
    kept = [
        name
        for name in chosen
        if re.search(r"(?<![a-z])(test|valid|validation|val|dev|eval)(?![a-z])", Path(name).name.lower())
    ]
    if kept and len(kept) < len(chosen):
        more += (
            f" By their names {_listed(kept)} may be meant for testing: name the files one by one to leave them out."
        )
    return f"reading {files} {where}: {_listed(chosen)}.{more}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
