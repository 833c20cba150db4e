"""How soon the program answers: help, version, completion of a word, and `import luthier`, beside the import of typer alone.

Each several times, in alternation; printed are the medians of wall seconds. What must not be loaded for these is a test.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from bench.figures import table

_COMPLETE = {"_LUTHIER_COMPLETE": "complete_bash", "COMP_WORDS": "luthier train --dr", "COMP_CWORD": "2"}
_ROUNDS = 9

_ASKED: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "luthier --help": (("-m", "luthier", "--help"), {}),
    "luthier --version": (("-m", "luthier", "--version"), {}),
    "completion of an option": (("-m", "luthier"), _COMPLETE),
    "import luthier": (("-c", "import luthier"), {}),
    "import typer": (("-c", "import typer"), {}),
    "Python alone": (("-c", "pass"), {}),
}


def seconds_of(words: tuple[str, ...], environment: dict[str, str]) -> float:
    """Wall seconds of a Python process from its start to its end."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *words], env=os.environ | environment, capture_output=True, check=True)
    return time.perf_counter() - began


def main() -> int:
    """Print the table."""
    found: dict[str, list[float]] = {name: [] for name in _ASKED}
    for _ in range(_ROUNDS):
        for name, (words, environment) in _ASKED.items():
            found[name].append(seconds_of(words, environment))
    print(table(("asked", "seconds"), [(name, f"{statistics.median(each):.2f}") for name, each in found.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
