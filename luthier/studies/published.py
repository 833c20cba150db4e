"""Scores that others published for the methods, to stand beside one's own: other models and other data, so only the order
of the methods compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published table: what was measured, by whom, and each method's score."""

    measure: str
    source: str
    scores: Mapping[str, float]


PUBLISHED = (
    Published(
        "GSM8K accuracy, %",
        "peft's own comparison: Llama-3.2-3B, 5,000 steps on MetaMathQA, single runs (one standard error is about 1.4)",
        {
            "full": 47.2, "lora": 47.8, "dora": 46.9, "adalora": 37.3, "vera": 35.4, "loha": 39.3, "lokr": 46.6, "oft": 49.1,
            "boft": 34.3, "ia3": 39.8, "prefix-tuning": 41.6, "prompt-tuning": 34.3, "p-tuning": 35.0,
        },
    ),
    Published(
        "GLUE dev average, BERT-base",
        "Wang et al. 2022, https://arxiv.org/abs/2205.12410",
        {"full": 82.7, "houlsby": 83.0, "bitfit": 82.3, "prefix-tuning": 82.1, "lora": 82.2, "adamix": 84.5},
    ),
    Published(
        "GLUE dev average, DeBERTaV3-base",
        "tables of Liu et al. 2023, https://arxiv.org/abs/2311.06243, and Meng et al. 2024, https://arxiv.org/abs/2404.02948",
        {
            "full": 88.25, "bitfit": 86.20, "houlsby": 88.28, "pfeiffer": 88.41, "lora": 88.50, "dora": 88.98,
            "adalora": 89.46, "oft": 89.77, "boft": 89.89,
        },
    ),
    Published(
        "GLUE average, T5-base",
        "Edalati et al. 2022, https://arxiv.org/abs/2212.10650, as a lecture quotes it",
        {"full": 85.65, "lora": 85.73, "compacter": 85.82, "krona": 86.14, "krona-b": 86.28},
    ),
)  # fmt: skip


def published_for(kinds: Sequence[str]) -> list[Published]:
    """The tables that have a score for one of these methods."""
    return [table for table in PUBLISHED if set(table.scores) & set(kinds)]


def published_table(kinds: Sequence[str]) -> list[tuple[str, ...]]:
    """Head and rows: a line a method, a column a published table; empty where no table has one of them."""
    tables = published_for(kinds)
    if not tables:
        return []
    head = ("method", *(table.measure for table in tables))
    rows = [(kind, *(_score(table, kind) for table in tables)) for kind in dict.fromkeys(kinds)]
    return [head, *(row for row in rows if set(row[1:]) != {""})]


def _score(table: Published, kind: str) -> str:
    return f"{table.scores[kind]:g}" if kind in table.scores else ""
