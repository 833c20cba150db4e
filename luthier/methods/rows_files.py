"""The rows of new tokens beside an adapter whose form has no place for them: in a safetensors file of their own.

luthier_new_tokens.safetensors    tokens (K,), and under the name of each layer that has trained rows these, (K, D)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save

from luthier.methods.adapter_files import AdapterFile, Form, read_tensors
from luthier.store.files import write_bytes

ROWS_FILE = "luthier_new_tokens.safetensors"
_TOKENS = "tokens"


def read_adapter(form: Form, source: str) -> AdapterFile:
    """The adapter of a run folder, or of the folder itself, with its rows of new tokens. Raises as `Form.read` does."""
    file = form.read(source)
    folder = Path(file.path)
    if not (folder / ROWS_FILE).is_file():
        return file
    rows = read_tensors(folder, ROWS_FILE)
    return replace(file, tokens=tuple(rows.pop(_TOKENS).tolist()), rows=rows)


def write_rows(folder: Path, file: AdapterFile) -> None:
    """Write the rows of an adapter into the folder that it is in."""
    tensors = {layer: tensor.detach().cpu().contiguous() for layer, tensor in file.rows.items()}
    write_bytes(folder / ROWS_FILE, save({_TOKENS: torch.tensor(file.tokens), **tensors}, metadata={"format": "pt"}))
