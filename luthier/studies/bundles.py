"""Bundles: all that is needed to carry out a run again and to tell whether it came out the same, in one zip file.

    manifest.json           what the bundle holds and what the run came to; the hash of every other member
    recipe.resolved.yaml    every setting, with the hashes of model and data
    metrics.jsonl           each step's numbers
    evaluation.json         what the last evaluation of the run found, if there was one; its answers, which show rows, only with the rows
    data/N/…                the rows, where they were asked for

The model's weights are never in it; their hash is. A bundle is read as text and numbers only: nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, ValidationError

from luthier.data.hub import is_hub_name
from luthier.data.reading.places import places_of
from luthier.data.settings import files_of
from luthier.errors import DataError, NotFound, RunMismatch, UsageError
from luthier.evaluation.run_report import ENVIRONMENT, EVALUATION, read_evaluation
from luthier.prepared import check_recipe
from luthier.recipe import Recipe, dump_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.recipe.provenance import dataset_sha256
from luthier.store.files import MANIFEST as FOLDER_MANIFEST
from luthier.store.files import folder_fault, read_json, sha256_file, write_pieces
from luthier.store.places import expanded
from luthier.store.runs import METRICS, RESOLVED, read_metrics, read_run
from luthier.types import Settings

Announce = Callable[[str], None]

FORMAT = 1
MANIFEST = "manifest.json"
_PIECE = 1 << 20
_ANY_DAY = (1980, 1, 1, 0, 0, 0)  # of every member, so that the same run gives the same file


class Named(Settings):
    """A file or folder that the recipe names: its files by the name of each below it, with their hashes.

    member: the folder of the bundle that they lie in; None where they are not in it. is_file: whether it is one file itself.
    """

    name: str
    is_file: bool
    sha256: dict[str, str]
    member: str | None = None


class Manifest(Settings):
    """What a bundle says of its run. result: the hash of each file that the run gave away, in its folder `output`."""

    format: int = Field(ge=1)
    run: str
    environment: dict[str, Any]
    output: str
    result: dict[str, str]
    steps: int
    data: tuple[Named, ...]
    members: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read, its members whole. metrics: as in metrics.jsonl. evaluation: as in evaluation.json; None without one."""

    path: Path
    manifest: Manifest
    recipe: str
    metrics: tuple[dict[str, Any], ...]
    evaluation: Mapping[str, Any] | None


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_bundle(folder: Path, out: Path, announce: Announce, *, with_data: bool = False) -> Manifest:
    """Write the bundle of a finished run.

    with_data: put the rows into it too. Raises: UsageError for a run that is not finished, or an `out` that is there already;
    RunMismatch where the data are no longer what the run learned from; NotFound; DiskFull.
    """
    if out.exists():
        raise UsageError(f"{out} is there already.", "Choose another file with --out.")
    recipe = recipe_of_run(folder)
    output = folder / recipe.method.output_folder
    fault = folder_fault(output)
    if read_run(folder).state != "finished" or fault is not None or recipe.provenance is None:
        why = f"{output.name}/: {fault}" if read_run(folder).state == "finished" else "it has not finished"
        raise UsageError(f"The run {folder} cannot be bundled: {why}.", f"Run 'luthier resume {folder}' first.")
    _check_data(recipe, announce)
    named = _named(recipe, announce, with_data)
    members: dict[str, bytes | Path] = {
        RESOLVED: dump_recipe(recipe).encode(),
        METRICS: (folder / METRICS).read_bytes(),
        **_evaluation(folder, with_data),
        **{member: path for each, files in named for member, path in _members(each, files)},
    }
    manifest = Manifest(
        format=FORMAT,
        run=folder.absolute().name,
        environment=read_json(folder / ENVIRONMENT),
        output=output.name,
        result=hashes_of(output),
        steps=read_metrics(folder)[-1]["step"],
        data=tuple(each for each, _ in named),
        members={name: _sha256(content) for name, content in members.items()},
    )
    text = json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n"
    write_pieces(out, _zipped({MANIFEST: text.encode(), **members}))
    return manifest


def hashes_of(output: Path) -> dict[str, str]:
    """The SHA-256 of every file that a run gave away, by its name below the folder."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name != FOLDER_MANIFEST]
    return {path.relative_to(output).as_posix(): sha256_file(path) for path in files}


def _check_data(recipe: Recipe, announce: Announce) -> None:
    """Raise RunMismatch if the data are not those that the run learned from."""
    assert recipe.provenance is not None
    if dataset_sha256(check_recipe(recipe, announce).dataset) != recipe.provenance.data_sha256:
        raise RunMismatch(
            "The data (the rows, or how they become tokens) are no longer what this run learned from.",
            "Put the old files back: a bundle of others could not be replayed.",
            field="provenance.data_sha256",
        )


def _named(recipe: Recipe, announce: Announce, with_data: bool) -> list[tuple[Named, dict[str, Path]]]:
    """What the recipe names as data, and the files of each; what is on the hub has none here."""
    data = recipe.data
    held_out = () if data.validation in ("auto", "none") else files_of(data.validation)
    found = []
    for number, name in enumerate(dict.fromkeys((*files_of(data.train), *held_out))):
        if is_hub_name(name):
            announce(f"{name} is on the hub, so its rows are not in the bundle.")
            continue
        is_file = expanded(name).is_file()
        paths = [place.path for place in places_of(name, lambda sentence: None)]
        files = dict(zip(_below(paths), paths, strict=True))
        member = f"data/{number}" if with_data else None
        hashes = {below: sha256_file(path) for below, path in files.items()}
        found.append((Named(name=name, is_file=is_file, sha256=hashes, member=member), files))
    return found


def _evaluation(folder: Path, with_data: bool) -> dict[str, bytes]:
    """What the last evaluation of the run found; nothing where there was none."""
    found = read_evaluation(folder)
    if found is None:
        return {}
    kept = {key: value for key, value in found.items() if with_data or key != "answers"}
    return {EVALUATION: (json.dumps(kept, ensure_ascii=False, indent=2) + "\n").encode()}


def _below(paths: Sequence[Path]) -> list[str]:
    """The names of files below the folder that holds them all."""
    folder = paths[0].parent
    while not all(path.is_relative_to(folder) for path in paths):
        folder = folder.parent
    return [path.relative_to(folder).as_posix() for path in paths]


def _members(named: Named, files: Mapping[str, Path]) -> list[tuple[str, Path]]:
    return [] if named.member is None else [(f"{named.member}/{below}", path) for below, path in files.items()]


def _sha256(content: bytes | Path) -> str:
    return sha256_file(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()


class _Sink(io.RawIOBase):
    """Where a zip file is written piece by piece, each taken out before the next."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Take a piece."""
        self._pieces.append(bytes(data))
        return len(self._pieces[-1])

    def take(self) -> bytes:
        """What was written since this was last asked."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _zipped(members: Mapping[str, bytes | Path]) -> Iterator[bytes]:
    """A zip file of these members, piece by piece."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            about = zipfile.ZipInfo(name, _ANY_DAY)
            about.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(about, "w", force_zip64=True) as member:
                for piece in _pieces(content):
                    member.write(piece)
                    yield sink.take()
    yield sink.take()


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_bundle(path: Path) -> Bundle:
    """A bundle, every member compared with its hash.

    Raises: NotFound; DataError for a file that is no bundle, one of a newer version, and one that is broken.
    """
    if not path.is_file():
        raise NotFound("There is no such bundle.", "'luthier bundle RUN' writes one.", file=str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(_content(archive, MANIFEST, path), path)
            for name, sha256 in manifest.members.items():
                _check_member(archive, name, sha256, path)
            recipe = _content(archive, RESOLVED, path).decode("utf-8")
            lines = _content(archive, METRICS, path).splitlines()
            found = json.loads(_content(archive, EVALUATION, path)) if EVALUATION in manifest.members else None
            return Bundle(path, manifest, recipe, tuple(json.loads(line) for line in lines), found)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise _broken(path, f"it cannot be read as a zip file of text ({error})") from error


def unpack_data(bundle: Bundle, folder: Path) -> dict[str, str]:
    """Write the rows of a bundle below a folder; the new name of each name of the recipe that was in it.

    Raises: DataError, DiskFull.
    """
    new: dict[str, str] = {}
    with zipfile.ZipFile(bundle.path) as archive:
        for number, named in enumerate(bundle.manifest.data):
            if named.member is None:
                continue
            place = folder / str(number)
            for below in named.sha256:
                with archive.open(f"{named.member}/{below}") as member:
                    write_pieces(place / below, iter(lambda member=member: member.read(_PIECE), b""))  # type: ignore[misc]
            new[named.name] = str((place / next(iter(named.sha256)) if named.is_file else place).absolute())
    return new


def _manifest(content: bytes, path: Path) -> Manifest:
    try:
        values = json.loads(content)
        version = values["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"its {MANIFEST} is not that of a bundle") from error
    if isinstance(version, int) and version > FORMAT:
        raise DataError(
            f"This bundle is of format {version}, and this version of Luthier reads up to {FORMAT}.",
            "Install the version of Luthier that wrote it, or a newer one.",
            file=str(path),
        )
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(map(str, fault["loc"]))
        raise _broken(path, f"in its {MANIFEST}, {field}: {fault['msg']}") from error
    names = [*manifest.members, *(below for named in manifest.data for below in named.sha256)]
    outside = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    absent = {RESOLVED, METRICS} - set(manifest.members)
    absent |= {
        f"{named.member}/{below}" for named in manifest.data if named.member is not None for below in named.sha256
    } - set(manifest.members)
    if outside or absent or "\\" in "".join(names):
        raise _broken(
            path, f"its {MANIFEST} names {outside[0]}" if outside else f"it lacks {', '.join(sorted(absent))}"
        )
    return manifest


def _content(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise _broken(path, f"it holds no {name}") from None


def _check_member(archive: zipfile.ZipFile, name: str, sha256: str, path: Path) -> None:
    try:
        with archive.open(name) as member:
            found = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
    except KeyError:
        raise _broken(path, f"it holds no {name}") from None
    if found != sha256:
        raise _broken(path, f"{name} has other contents than when it was written (its SHA-256 differs)")


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"This is no whole bundle: {why}.", "Copy it again, or write it anew with 'luthier bundle RUN'.", file=str(path)
    )
