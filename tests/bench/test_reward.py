"""The bench of reward models: no prompt is both learned from and held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from bench.reward import split


def test_rows_of_one_prompt_stay_on_one_side(tmp_path: Path) -> None:
    rows = [
        {
            "chosen": f"\n\nHuman: What is {prompt}?\n\nAssistant: It is {prompt}, as I said {number} times.",
            "rejected": f"\n\nHuman: What is {prompt}?\n\nAssistant: I do not know, {number}.",
        }
        for prompt in range(12)
        for number in range(3)
    ]
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    for num_held_out in range(1, 12):
        files = split(path, 36, num_held_out, tmp_path)
        train, held_out = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
        asked = [{row["chosen"].split("Assistant")[0] for row in side} for side in (train, held_out)]
        assert not asked[0] & asked[1]
        assert len(held_out) == num_held_out
        assert len(train) + num_held_out > 36 - 3
