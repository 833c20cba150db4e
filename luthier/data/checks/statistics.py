"""The statistics page: what the rows are like, what was found, and what a limit on their length would lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.checks.checking import Checked
from luthier.data.checks.languages import UNTOLD
from luthier.data.checks.lengths import quantile
from luthier.store.files import write_bytes, write_text
from luthier.store.pictures import png_of
from luthier.types import RowLengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE, PICTURE = "report.md", "report.png"
CHARACTERS_OF_TOKEN: Mapping[str, float] = {"Latin": 4, "Cyrillic": 2.5, "Greek": 2, "Han": 1, "Kana": 1, "Hangul": 1}
OF_OTHERS = 1.5
"""About so many characters of each script make a token, and of others; tokenizers differ, those made for English most."""

LIMITS = (256, 512, 1024, 2048, 4096, 8192)
_SHARES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)
_MOST_FINDINGS = 200
_MOST_LABELS = 30


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer says of the rows. of_row: their mean, where it wrote all of them; lengths: None where it measured none."""

    of_row: float | None = None
    lengths: RowLengths | None = None


UNTOLD_TOKENS = Tokens()


@dataclass(frozen=True)
class TokenLength:
    """How many characters of the rows a token has. is_counted: whether a tokenizer wrote them; else it is told from scripts."""

    characters: float
    is_counted: bool

    @property
    def said(self) -> str:
        """The length, and where it is from."""
        how = "as the model's tokenizer writes these rows" if self.is_counted else "as is usual for their scripts"
        return f"{self.characters:.1f} characters a token, {how}"


def said_of_lengths(lengths: RowLengths) -> str:
    """What cutting the rows at their limit loses, in words."""
    limit = f"data.max_length ({lengths.limit:,} tokens)"
    if not lengths.num_long:
        return f"None of {lengths.num_rows:,} rows is longer than {limit}: the longest has {lengths.longest:,}."
    lost = f"{lengths.beyond:,} of {lengths.num_tokens:,} tokens ({_share(lengths.beyond, lengths.num_tokens)})"
    if lengths.num_learned:
        share = _share(lengths.learned_beyond, lengths.num_learned)
        lost += f", {lengths.learned_beyond:,} of them learned ({share} of what is learned)"
    return (
        f"{lengths.num_long:,} of {lengths.num_rows:,} rows {'is' if lengths.num_long == 1 else 'are'} longer than {limit}: the longest has {lengths.longest:,}. "
        f"Cutting there loses {lost}."
    )


def _share(part: int, of: int) -> str:
    return f"{part / max(1, of):.1%}"


def _truncation(lengths: RowLengths) -> dict[str, Any]:
    """The same as `--json` has it."""
    return {
        "max_length": lengths.limit,
        "rows": lengths.num_rows,
        "longer_rows": lengths.num_long,
        "longest_row": lengths.longest,
        "tokens": lengths.num_tokens,
        "tokens_beyond": lengths.beyond,
        "share_beyond": lengths.beyond / max(1, lengths.num_tokens),
        "learned_tokens": lengths.num_learned,
        "learned_tokens_beyond": lengths.learned_beyond,
    }


def token_length(checked: Checked, tokens_of_row: float | None = None) -> TokenLength:
    """How many characters a token has. tokens_of_row: of all rows on average, whole, where a tokenizer has written them."""
    rows, num_rows = checked.rows_by_length, max(1, sum(checked.rows_by_length.values()))
    if tokens_of_row:
        characters = sum(length * count for length, count in rows.items())
        return TokenLength(max(0.1, characters / num_rows / tokens_of_row), is_counted=True)
    known = {script: count for script, count in checked.characters.items() if script != UNTOLD}
    tokens = sum(count / CHARACTERS_OF_TOKEN.get(script, OF_OTHERS) for script, count in known.items())
    return TokenLength(sum(known.values()) / tokens if tokens else CHARACTERS_OF_TOKEN["Latin"], is_counted=False)


def statistics_of(checked: Checked, tokens: Tokens = UNTOLD_TOKENS) -> dict[str, Any]:
    """Lengths in characters, what a limit on tokens would cut, how often each label comes, and which languages there are."""
    rows, token = Counter(checked.rows_by_length), token_length(checked, tokens.of_row)
    return {
        "characters_of_row": _quantiles(rows),
        "characters_of_field": {peer: _quantiles(Counter(counts)) for peer, counts in checked.texts_by_length.items()},
        "characters_of_token": round(token.characters, 3),
        "tokens_are": "counted" if token.is_counted else "estimated",
        "truncation": None if tokens.lengths is None else _truncation(tokens.lengths),
        "cut_at_tokens": {str(limit): _cut(rows, limit * token.characters) for limit in LIMITS},
        "labels": {peer: dict(Counter(counts).most_common(_MOST_LABELS)) for peer, counts in checked.labels.items()},
        "languages": {peer: dict(Counter(counts).most_common()) for peer, counts in checked.languages.items()},
    }


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    if not counts:
        return {}
    return {f"{share:.0%}": quantile(counts, share) if share else min(counts) for share in _SHARES}


def _cut(rows: Mapping[int, int], limit: float) -> dict[str, float]:
    """The shares of the rows that are longer than a limit of characters, and of all characters that lie beyond it."""
    total, characters = sum(rows.values()), sum(length * count for length, count in rows.items())
    longer = sum(count for length, count in rows.items() if length > limit)
    beyond = sum((length - limit) * count for length, count in rows.items() if length > limit)
    return {"rows": longer / max(1, total), "characters": beyond / max(1, characters)}


def write_report(checked: Checked, folder: Path, tokens: Tokens = UNTOLD_TOKENS) -> None:
    """Write the page (Markdown) and its picture (PNG) into a folder."""
    write_text(folder / PAGE, page(checked, tokens))
    write_bytes(folder / PICTURE, picture(checked))


def page(checked: Checked, tokens: Tokens = UNTOLD_TOKENS) -> str:
    """The page as Markdown."""
    statistics = statistics_of(checked, tokens)
    form = f"read as {checked.form}: {checked.reason}" if checked.form else checked.reason
    lines = [
        "# Data check",
        "",
        f"{checked.num_rows:,} rows, {checked.num_held_out:,} for validation; {form.rstrip('.')}.",
        f"{len(checked.errors):,} errors, {len(checked.findings) - len(checked.errors):,} warnings.",
        "",
        f"![lengths, labels and languages]({PICTURE})",
        "",
        "## What was found",
        "",
        *_table(("kind", "found"), [(kind, f"{count:,}") for kind, count in checked.counts.items()]),
        *_common(checked),
        "## How long the rows are",
        "",
        *_table(
            ("characters", *(f"{share:.0%}" for share in _SHARES)),
            [
                (name, *(f"{each.get(f'{share:.0%}', 0):,}" for share in _SHARES))
                for name, each in (("row", statistics["characters_of_row"]), *statistics["characters_of_field"].items())
            ],
        ),
        *([] if tokens.lengths is None else [said_of_lengths(tokens.lengths), ""]),
        f"At {token_length(checked, tokens.of_row).said}, `data.max_length` would cut:",
        "",
        *_table(
            ("data.max_length", "rows cut", "of all text lost"),
            [
                (limit, f"{cut['rows']:.1%}", f"{cut['characters']:.1%}")
                for limit, cut in statistics["cut_at_tokens"].items()
            ],
        ),
    ]
    lines += [
        "## Languages and scripts",
        "",
        *_table(
            ("field", "language", "texts", "share"),
            [
                (peer, name, f"{count:,}", f"{count / sum(counts.values()):.1%}")
                for peer, counts in statistics["languages"].items()
                for name, count in counts.items()
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


def _common(checked: Checked) -> list[str]:
    if not checked.common:
        return []
    rows = [(one.kind, f"{one.number:,} of {one.of:,}", one.example.where, one.example.found) for one in checked.common]
    said = "Too common to be told one by one, and not counted above; see whether the set is meant to be so:"
    return [said, "", *_table(("kind", "of those looked at", "the first", "found"), rows)]


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
    """Rows by length, findings by kind, labels by frequency, and texts by language, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    lengths, kinds, labels, spoken = figure.subplots(1, 4)
    _histogram(lengths, checked.rows_by_length)
    _bars(kinds, "findings by kind", checked.counts)
    most = next(iter(sorted(checked.labels.items(), key=lambda item: -sum(item[1].values()))), ("no labels", {}))
    _bars(labels, f"labels: {most[0]}", dict(Counter(most[1]).most_common(12)))
    texts = Counter[str]()
    for counts in checked.languages.values():
        texts.update(counts)
    _bars(spoken, "texts by language", dict(texts.most_common(12)))
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
