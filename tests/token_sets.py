"""Rows that become token sets, and what two sets must have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_examples import example_of
from small_tokenizers import CHATML, byte_level

from luthier.data.dataset import Asked, Dataset, load_dataset
from luthier.data.settings import DataSettings
from luthier.data.tokens import sets
from luthier.types import Example


def small_limits(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """From now on 20 rows are a large set, whose tokens are kept in the folder that comes back."""
    monkeypatch.setenv("HOME", str(home))
    limits = {"ROWS_TO_KEEP": 20, "BYTES_TO_HASH": 0, "ROWS_OF_RUN": 7, "ROWS_OF_FORM": 40}
    for name, limit in limits.items():
        monkeypatch.setattr(sets, name, limit)
    return home / ".cache" / "luthier" / "tokens"


def write_chats(path: Path, count: int, **changed: dict[int, Any]) -> str:
    """Write chats of several lengths as JSONL; changed: rows that stand in place of those with these numbers."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where is order {number}?"},
                {"role": "assistant", "content": "It is here. " * (1 + number % 5)},
            ]
        }
        for number in range(count)
    ]
    for number, row in changed.get("rows", {}).items():
        rows[number] = row
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def loaded(train: Any, said: list[str] | None = None, key: str | None = "test", **values: Any) -> Dataset:
    """The data set of a source, as `example_of` learns from it."""
    values = {"processes": 1, "max_length": 512, **values}
    announce = (lambda text: None) if said is None else said.append
    return load_dataset(
        DataSettings(train=train, **values), byte_level(CHATML), example_of, announce, asked=Asked(key=key)
    )


def plain(value: Any) -> Any:
    """A value with arrays as their type and numbers, so that two can be compared."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    return tuple(map(plain, value)) if isinstance(value, tuple) else value


def all_of(rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Every field of every example."""
    return [
        {
            field.name: plain(getattr(row, field.name))
            if field.name != "parts"
            else [(plain(part.tokens_T), part.parent, part.causal) for part in row.parts]
            for field in fields(row)
        }
        for row in rows
    ]


def content(dataset: Dataset) -> dict[str, Any]:
    """All that is the same wherever a set comes from."""
    return {
        "train": all_of(dataset.train),
        "validation": all_of(dataset.validation),
        "records": [list(dataset.train_records), list(dataset.validation_records)],
        "said": (dataset.format, dataset.reason, dataset.notes, dataset.sha256, dataset.labels),
    }
