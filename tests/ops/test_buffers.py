"""Memory that is used again and again."""

from __future__ import annotations

import torch

from luthier.ops.buffers import Buffers

CPU = torch.device("cpu")


def test_a_buffer_is_the_same_memory_until_more_is_asked_for() -> None:
    buffers = Buffers()
    first = buffers.take("weight", 8, torch.float32, CPU)
    assert buffers.take("weight", 5, torch.float32, CPU).data_ptr() == first.data_ptr()
    assert buffers.take("index", 8, torch.float32, CPU).data_ptr() != first.data_ptr()
    assert len(buffers.take("weight", 9, torch.float32, CPU)) == 9


def test_what_an_evaluation_took_first_may_be_written_to_in_training() -> None:
    buffers = Buffers()
    with torch.inference_mode():
        buffers.take("weight", 4, torch.float32, CPU).fill_(1)
    assert buffers.take("weight", 4, torch.float32, CPU).fill_(2).tolist() == [2, 2, 2, 2]
