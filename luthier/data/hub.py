"""Rows of a data set on the Hugging Face hub, through the optional package `datasets`. No code of a data set is ever run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from luthier.errors import DataError, NetworkError, NotFound

_ROWS_AT_ONCE = 1000


def is_hub_name(source: str) -> bool:
    """Whether this can only be a name on the hub: `owner/name`, no such path here, and no file ending."""
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None
    has_ending = re.search(r"\.[A-Za-z]\w*$", source) is not None  # not the .5 of teknium/OpenHermes-2.5
    return is_name and not has_ending and not Path(source.partition("/")[0]).exists()


def fetch_values(name: str, announce: Callable[[str], None], limit: int | None) -> Iterator[dict[str, Any]]:
    """The rows of the split `train`, as dictionaries, at most `limit` of them.

    Without a limit the set is kept on the disk, from where it is read as it goes; with one, no more of it is fetched than
    those rows need.

    Raises: NotFound, DataError if the set cannot be loaded as it is, NetworkError if the hub cannot be reached.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        mend = "Install it with: pip install 'luthier[hub]'; or give a local file."
        raise DataError("reading from the hub needs the package datasets.", mend, file=name) from error
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # the base error of whichever HTTP client this version of the hub's library uses
    unreachable = (ConnectionError, TimeoutError, cast(type[Exception], HfHubHTTPError.__bases__[0]))
    announce(f"There is no local file {name}; fetching the split 'train' of that data set from the Hugging Face hub.")
    try:
        try:
            rows = datasets.load_dataset(name, split="train", streaming=limit is not None)
        except unreachable:
            if limit is None:
                raise
            rows = datasets.load_dataset(name, split="train", streaming=False)  # may be on the disk from before
        yield from islice(_values(rows), limit)
    except DatasetNotFoundError as error:
        found = "there is no such local file, and the hub shows no data set of that name."
        mend = "Check the name or path. A private or gated set needs `hf auth login` and its terms accepted."
        raise NotFound(found, mend, file=name) from error
    except DataFilesNotFoundError as error:
        mend = "Choose another, or give a local file."
        raise DataError("this data set holds no data files.", mend, file=name) from error
    except unreachable as error:
        found = f"there is no such local file, and the hub could not be reached: {error}."
        mend = "Connect to the network and try again, or download the set elsewhere and give its file."
        raise NetworkError(found, mend, file=name) from error
    except (DatasetsError, ValueError, RuntimeError) as error:
        # no such split, several configurations, a loading script
        found = f"the hub's data set cannot be loaded as it is: {error}."
        raise DataError(found, "Download the file you want and give its path.", file=name) from error


def _values(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set, kept or streamed, a batch at a time."""
    # arrow: values as they are stored, without decoding images or sound
    for batch in rows.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        yield from batch.to_pylist()
