"""What runs that learn from rewards begin from: a tiny model, prompts, and a reward for vowels."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_model import write_tiny_model

VOWELS = (
    "def reward(prompts, answers, rows):\n    return [sum(c in 'aeiou' for c in a) / (1 + len(a)) for a in answers]\n"
)


def write_desk(folder: Path) -> Path:
    """Write `model`, `rows.jsonl`, `held-out.jsonl` and the reward `vowels.py` into a folder; return it."""
    write_tiny_model(folder / "model")
    rows = [{"prompt": f"Say {number}", "answer": str(number)} for number in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held-out.jsonl").write_text(json.dumps({"prompt": "Say 99"}) + "\n")
    (folder / "vowels.py").write_text(VOWELS)
    return folder
