"""The statistics page: what the rows are like, what was found, and what a limit on their length would lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.checks.checking import Checked
from luthier.data.checks.lengths import quantile
from luthier.store.files import write_bytes, write_text
from luthier.store.pictures import png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, PICTURE = "report.md", "report.png"
CHARACTERS_OF_TOKEN = 4
"""About so many characters of English make a token; the gate counts the tokens themselves."""

LIMITS = (256, 512, 1024, 2048, 4096, 8192)
_SHARES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)
_MOST_FINDINGS = 200
_MOST_LABELS = 30


def statistics_of(checked: Checked) -> dict[str, Any]:
    """Lengths in characters, what a limit on tokens would cut, and how often each label comes."""
    rows = Counter(checked.rows_by_length)
    return {
        "characters_of_row": _quantiles(rows),
        "characters_of_field": {peer: _quantiles(Counter(counts)) for peer, counts in checked.texts_by_length.items()},
        "cut_at_tokens": {str(limit): _cut(rows, limit * CHARACTERS_OF_TOKEN) for limit in LIMITS},
        "labels": {peer: dict(Counter(counts).most_common(_MOST_LABELS)) for peer, counts in checked.labels.items()},
    }


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    if not counts:
        return {}
    return {f"{share:.0%}": quantile(counts, share) if share else min(counts) for share in _SHARES}


def _cut(rows: Mapping[int, int], limit: int) -> dict[str, float]:
    """The shares of the rows that are longer than a limit of characters, and of all characters that lie beyond it."""
    total, characters = sum(rows.values()), sum(length * count for length, count in rows.items())
    longer = sum(count for length, count in rows.items() if length > limit)
    beyond = sum((length - limit) * count for length, count in rows.items() if length > limit)
    return {"rows": longer / max(1, total), "characters": beyond / max(1, characters)}


def write_report(checked: Checked, folder: Path) -> None:
    """Write the page (Markdown) and its picture (PNG) into a folder."""
    write_text(folder / PAGE, page(checked))
    write_bytes(folder / PICTURE, picture(checked))


def page(checked: Checked) -> str:
    """The page as Markdown."""
    statistics = statistics_of(checked)
    form = f"read as {checked.form}: {checked.reason}" if checked.form else checked.reason
    lines = [
        "# Data check",
        "",
        f"{checked.num_rows:,} rows, {checked.num_held_out:,} for validation; {form.rstrip('.')}.",
        f"{len(checked.errors):,} errors, {len(checked.findings) - len(checked.errors):,} warnings.",
        "",
        f"![lengths and labels]({PICTURE})",
        "",
        "## What was found",
        "",
        *_table(("kind", "found"), [(kind, f"{count:,}") for kind, count in checked.counts.items()]),
        "## How long the rows are",
        "",
        *_table(
            ("characters", *(f"{share:.0%}" for share in _SHARES)),
            [
                (name, *(f"{each.get(f'{share:.0%}', 0):,}" for share in _SHARES))
                for name, each in (("row", statistics["characters_of_row"]), *statistics["characters_of_field"].items())
            ],
        ),
        f"At {CHARACTERS_OF_TOKEN} characters a token, `data.max_length` would cut:",
        "",
        *_table(
            ("data.max_length", "rows cut", "of all text lost"),
            [
                (limit, f"{cut['rows']:.1%}", f"{cut['characters']:.1%}")
                for limit, cut in statistics["cut_at_tokens"].items()
            ],
        ),
    ]
    for peer, counts in statistics["labels"].items():
        lines += [
            f"## Labels in {peer}",
            "",
            *_table(("label", "rows"), [(name, f"{n:,}") for name, n in counts.items()]),
        ]
    return "\n".join([*lines, *_findings(checked)]) + "\n"


def _findings(checked: Checked) -> list[str]:
    if not checked.findings:
        return []
    rows = [(one.severity, one.kind, one.where, one.found, one.mend) for one in checked.findings[:_MOST_FINDINGS]]
    more = len(checked.findings) - len(rows)
    return [
        "## Each finding",
        "",
        *_table(("severity", "kind", "where", "found", "mend"), rows),
        *([f"And {more:,} more."] if more else []),
    ]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["Nothing.", ""]
    cells = [
        [cell.replace("|", "\\|").replace("\n", " ").encode("utf-8", "replace").decode() for cell in row]
        for row in (head, *rows)
    ]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def picture(checked: Checked) -> bytes:
    """Rows by length, findings by kind, and labels by frequency, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    lengths, kinds, labels = figure.subplots(1, 3)
    _histogram(lengths, checked.rows_by_length)
    _bars(kinds, "findings by kind", checked.counts)
    most = next(iter(sorted(checked.labels.items(), key=lambda item: -sum(item[1].values()))), ("no labels", {}))
    _bars(labels, f"labels: {most[0]}", dict(Counter(most[1]).most_common(12)))
    return png_of(figure)


def _histogram(axes: Axes, rows: Mapping[int, int]) -> None:
    axes.hist(list(rows), bins=40, weights=list(rows.values()), color="#2563eb")
    axes.set_title("rows by length", fontsize=10)
    axes.set_xlabel("characters")
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Axes, title: str, counts: Mapping[str, int]) -> None:
    shown = list(counts.items())[:12][::-1]
    names = [name[:24].encode("ascii", "backslashreplace").decode().replace("$", r"\$") for name, _ in shown]
    axes.barh(range(len(shown)), [count for _, count in shown], color="#2563eb")
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.set_title(title.encode("ascii", "backslashreplace").decode().replace("$", r"\$"), fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
