"""Rows of a data set on the Hugging Face hub, through the optional package `datasets`. No code of a data set is ever run.

owner/name                       the split `train` of its one configuration, or of its default
owner/name:configuration         the split `train` of another configuration
owner/name:configuration:split   another split
owner/name::split                another split of its one configuration, or of its default
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from luthier.errors import DataError, NetworkError, NotFound

_NAME = re.compile(
    r"(?P<set>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(?P<configuration>[\w.+-]*)(?::(?P<split>[\w.-]+))?)?"
)
_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class HubSet:
    """What a hub name stands for. name: owner/name. configuration: None for the only one, or the set's default."""

    name: str
    configuration: str | None
    split: str

    def other(self, configuration: str | None, split: str) -> str:
        """The hub name of another part of the set."""
        return f"{self.name}:{configuration or ''}:{split}" if split != "train" else f"{self.name}:{configuration}"


def is_hub_name(source: str) -> bool:
    """Whether this can only be a name on the hub: as above, no such path here, and no file ending."""
    found = _NAME.fullmatch(source)
    if found is None or Path(source).exists():
        return False
    has_ending = re.search(r"\.[A-Za-z]\w*$", found["set"]) is not None  # not the .5 of teknium/OpenHermes-2.5
    return not has_ending and not Path(source.partition("/")[0]).exists()


def hub_set(source: str) -> HubSet:
    """What a hub name stands for."""
    found = _NAME.fullmatch(source)
    assert found is not None, "is_hub_name was asked"
    return HubSet(found["set"], found["configuration"] or None, found["split"] or "train")


def fetch_values(source: str, announce: Callable[[str], None], limit: int | None) -> Iterator[dict[str, Any]]:
    """The rows that a hub name stands for, as dictionaries, at most `limit` of them.

    Without a limit the set is kept on the disk, from where it is read as it goes; with one, no more of it is fetched than
    those rows need.

    Raises: NotFound, DataError if the set cannot be loaded as it is, NetworkError if the hub cannot be reached.
    """
    with _asking(source, announce) as hub:
        try:
            rows = hub.load(streaming=limit is not None)
        except hub.unreachable:
            if limit is None:
                raise
            rows = hub.load(streaming=False)  # may be on the disk from before
        yield from islice(_values(rows), limit)


def stored_files(source: str, announce: Callable[[str], None]) -> tuple[Path, ...]:
    """The files on the disk that hold the set of a hub name, fetched where they are not there yet; raises as `fetch_values`."""
    with _asking(source, announce) as hub:
        return tuple(Path(file["filename"]) for file in hub.load(streaming=False).cache_files)


@dataclass(frozen=True)
class _Hub:
    """The library, and which set it is asked for. unreachable: what it raises where there is no network."""

    datasets: Any
    wanted: HubSet
    unreachable: tuple[type[Exception], ...]

    def load(self, *, streaming: bool) -> Any:
        """The set, on the disk or row by row from the network."""
        wanted = self.wanted
        named = () if wanted.configuration is None else (wanted.configuration,)
        return self.datasets.load_dataset(wanted.name, *named, split=wanted.split, streaming=streaming)


@contextmanager
def _asking(source: str, announce: Callable[[str], None]) -> Iterator[_Hub]:
    """Within: what the library raises is told as this tool's own errors, as `fetch_values` has them."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        mend = "Install it with: pip install 'luthier[hub]'; or give a local file."
        raise DataError("reading from the hub needs the package datasets.", mend, file=source) from error
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    wanted = hub_set(source)
    # the base error of whichever HTTP client this version of the hub's library uses
    unreachable = (ConnectionError, TimeoutError, cast(type[Exception], HfHubHTTPError.__bases__[0]))
    of = f" of the configuration {wanted.configuration!r}" if wanted.configuration is not None else ""
    announce(
        f"There is no local file {source}; fetching the split {wanted.split!r}{of} of that data set from the Hugging Face hub."
    )
    try:
        yield _Hub(datasets, wanted, unreachable)
    except DatasetNotFoundError as error:
        found = "there is no such local file, and the hub shows no data set of that name."
        mend = "Check the name or path. A private or gated set needs `hf auth login` and its terms accepted."
        raise NotFound(found, mend, file=source) from error
    except DataFilesNotFoundError as error:
        mend = "Choose another, or give a local file."
        raise DataError("this data set holds no data files.", mend, file=source) from error
    except unreachable as error:
        found = f"there is no such local file, and the hub could not be reached: {error}."
        mend = "Connect to the network and try again, or download the set elsewhere and give its file."
        raise NetworkError(found, mend, file=source) from error
    except (DatasetsError, ValueError, RuntimeError) as error:
        # no such split, several configurations, a loading script
        unknown = _unknown_part(datasets, wanted, (DatasetsError, ValueError, RuntimeError, *unreachable))
        if unknown is None:
            found = f"the hub's data set cannot be loaded as it is: {error}."
            unknown = found, "Download the file you want and give its path."
        raise DataError(*unknown, file=source) from error


def _unknown_part(datasets: Any, wanted: HubSet, failures: tuple[type[Exception], ...]) -> tuple[str, str] | None:
    """What is wrong and its mend, if the set has no such configuration or split; None if it has, or it cannot be asked."""
    try:
        configurations = list(datasets.get_dataset_config_names(wanted.name))
        if wanted.configuration is None and len(configurations) > 1 and "default" not in configurations:
            found = f"the data set has several configurations, and the name chooses none: {', '.join(configurations)}."
            return found, f"Write one of them after the name, such as {wanted.other(configurations[0], wanted.split)}."
        if wanted.configuration is not None and wanted.configuration not in configurations:
            found = f"the data set has no configuration {wanted.configuration!r}, but {', '.join(configurations)}."
            return found, f"Choose one of them, such as {wanted.other(configurations[0], wanted.split)}."
        splits = list(datasets.get_dataset_split_names(wanted.name, wanted.configuration))
    except failures:
        return None
    if wanted.split in splits:
        return None
    found = f"the data set has no split {wanted.split!r}, but {', '.join(map(repr, splits))}."
    return found, f"Choose one of them, such as {wanted.other(wanted.configuration, splits[0])}."


def _values(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set, kept or streamed, a batch at a time."""
    # arrow: values as they are stored, without decoding images or sound
    for batch in rows.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        yield from batch.to_pylist()
