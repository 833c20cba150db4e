"""How long `luthier check` takes, and what it says of real sets.

python -m bench.check                 100,000 rows of about 800 bytes, with some faults, on two processes: seconds, CPU
                                      seconds of all processes, peak memory, and how many of the planted faults were found
python -m bench.check --table         every set of ../shared/data: its form and why, its rows, the faults found
python -m bench.check --table FILE    the same, written into a page between its two marks
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.figures import table
from bench.processes import ROOT
from luthier.data.checks.checking import check_data
from luthier.data.reading import READABLE
from luthier.errors import LuthierError

_EACH = 1_000
_WORDS = 4_000
_DATA = ROOT.parent / "shared" / "data"
_BEGIN, _END = "<!-- made by python -m bench.check --table -->", "<!-- end -->"
_KINDS_SHOWN = 4


def write_rows(path: Path, rows: int, seed: int = 20261) -> int:
    """Write rows of made-up words, every thousandth with a fault; return the bytes."""
    random_ = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(random_.choices(syllables, k=random_.randint(1, 4))) for _ in range(_WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt, answer = " ".join(random_.choices(words, k=20)), " ".join(random_.choices(words, k=95))
            fault = " cafÃ©" if number % _EACH == _EACH - 1 else ""
            row = {"prompt": f"{prompt.capitalize()}?", "completion": f"{answer.capitalize()}{fault}."}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path.stat().st_size


def measure_speed(num_rows: int, seed: int) -> str:
    """A table of what one check of made-up rows took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        num_bytes = write_rows(path, num_rows, seed)
        before, began = _cpu_seconds(), time.perf_counter()
        checked = check_data(str(path), None, lambda text: print(text, file=sys.stderr))
        seconds = time.perf_counter() - began
        own, others = (after - was for after, was in zip(_cpu_seconds(), before, strict=True))
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    row = (
        f"{checked.num_rows:,}",
        f"{num_bytes / num_rows:.0f}",
        f"{seconds:.1f}",
        f"{own + others:.1f}",
        f"{own:.1f}",
        f"{peaks[0]:.0f} + {peaks[1]:.0f} each",
        f"{num_rows // _EACH}",
        f"{checked.counts.get('mojibake', 0)}",
    )
    head = ("rows", "bytes a row", "seconds", "CPU seconds", "of the main process", "peak MB", "planted", "found")
    return table(head, [row])


def _cpu_seconds() -> tuple[float, float]:
    """CPU seconds of this process, and of those that it began and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return used[0].ru_utime + used[0].ru_stime, used[1].ru_utime + used[1].ru_stime


# ── real sets ───────────────────────────────────────────────────────────────────────────────────────────────────────


def table_of_sets(data: Path) -> str:
    """A line for each file of rows under a folder: what it is read as, how many rows it has, and what is found there."""
    rows = [_line_of(data, path) for path in sorted(data.glob("*/*")) if path.suffix in READABLE]
    head = (
        ("file", "read as", "why", "rows", "errors", "warnings", "kinds"),
        ("---", "---", "---", "--:", "--:", "--:", "---"),
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (*head, *(row for row in rows if row is not None)))


def read_as(form: str | None, reason: str) -> tuple[str, str]:
    """What the table says of a set's form: its name, or that it is refused; and why, without the names of the columns."""
    why = reason.partition(" Columns found:")[0].removeprefix("the rows cannot be learned from: ").rstrip(".")
    return form or "refused", why.replace("|", "\\|")


def _line_of(data: Path, path: Path) -> tuple[str, ...] | None:
    name = str(path.relative_to(data))
    if path.stem.lower() in ("readme", "license", "classes", "notice"):
        return None
    try:
        checked = check_data(str(path), None, lambda text: None)
    except LuthierError as error:
        return name, "no rows", error.found[:80], "", "", "", ""
    kinds = Counter(finding.kind for finding in checked.findings).most_common(_KINDS_SHOWN)
    shown = ", ".join(f"{kind} {count}" for kind, count in kinds)
    errors = len(checked.errors)
    warnings = len(checked.findings) - errors
    read = read_as(checked.form, checked.reason)
    return name, *read, f"{checked.num_rows:,}", f"{errors:,}", f"{warnings:,}", shown


def write_between(page: Path, text: str) -> None:
    """Put a table into a page, in the place of the one between its marks. Raises: ValueError for a page without them."""
    before, begin, rest = page.read_text("utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(
            f"{page} has no line {_BEGIN} with a line {_END} after it; write both where the table should be."
        )
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Measure, or print the table of sets."""
    parser = argparse.ArgumentParser(prog="python -m bench.check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows to make up (default: 100,000)")
    parser.add_argument("--seed", type=int, default=20261, help="where the random draws begin (default: 20261)")
    parser.add_argument("--data", type=Path, default=_DATA, help="folder of the sets (default: ../shared/data)")
    parser.add_argument("--table", nargs="?", const="-", metavar="FILE", help="check the sets; write the table here")
    options = parser.parse_args(arguments)
    if options.table is None:
        print(measure_speed(options.rows, options.seed))
    elif options.table == "-":
        print(table_of_sets(options.data))
    else:
        write_between(Path(options.table), table_of_sets(options.data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
