"""How long `luthier check` takes: 100,000 rows of about 800 bytes, with some faults, on two processes.

`python -m bench.check` prints the seconds, the peak memory, and how many of the planted faults were found.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from bench.figures import table
from luthier.data.checks.checking import check_data

_ROWS = 100_000
_EACH = 1_000
_WORDS = 4_000


def write_rows(path: Path, rows: int) -> int:
    """Write rows of made-up words, every thousandth with a fault; return the bytes."""
    random_ = random.Random(20261)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(random_.choices(syllables, k=random_.randint(1, 4))) for _ in range(_WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            prompt, answer = " ".join(random_.choices(words, k=20)), " ".join(random_.choices(words, k=95))
            fault = " cafÃ©" if number % _EACH == _EACH - 1 else ""
            row = {"prompt": f"{prompt.capitalize()}?", "completion": f"{answer.capitalize()}{fault}."}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path.stat().st_size


def main() -> int:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        num_bytes = write_rows(path, _ROWS)
        began = time.perf_counter()
        checked = check_data(str(path), None, lambda text: print(text, file=sys.stderr))
        seconds = time.perf_counter() - began
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = others.ru_utime + others.ru_stime
    found = checked.counts.get("mojibake", 0)
    print(
        table(
            ("rows", "bytes a row", "seconds", "CPU seconds of the processes", "peak MB", "planted", "found"),
            [
                (
                    f"{checked.num_rows:,}",
                    f"{num_bytes / _ROWS:.0f}",
                    f"{seconds:.1f}",
                    f"{cores:.1f}",
                    f"{own:.0f} + {others.ru_maxrss / 1024:.0f} each",
                    f"{_ROWS // _EACH}",
                    f"{found}",
                )
            ],
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
