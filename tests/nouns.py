"""Words that rows of tests are made of, so that no two of them are near copies."""

from __future__ import annotations

NOUNS = (
    "lamp",
    "table",
    "garden",
    "engine",
    "letter",
    "river",
    "market",
    "window",
    "bridge",
    "violin",
    "harbour",
    "kettle",
    "museum",
    "forest",
)
