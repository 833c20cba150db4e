"""An adapter that was written to a file and read back is the adapter that was written."""

from __future__ import annotations

from luthier.methods import LoRA
from luthier.store.files import write_folder
from luthier.studies.selftest.findings import Found, Measured, unlike
from luthier.studies.selftest.subject import Subject, logprobs


def measure(subject: Subject) -> Found:
    """The numbers bit for bit, and what the model then says."""
    model, attachment = subject.model, subject.attachment
    folder = subject.folder / "adapter"
    write_folder(folder, lambda partial: attachment.write(partial, lambda sentence: None), replace=True)
    read = LoRA.model_validate({"from": str(folder)}).attach(model, "read back", seed=2)
    before, after = (logprobs(model, subject.batch, each.adapter) for each in (attachment, read))
    tolerance = 0.0 if model.device.type == "cpu" else subject.tolerance
    return [
        Measured("numbers", unlike(read.file_tensors(), attachment.file_tensors()), 0.0),
        Measured("log-probabilities", unlike(after, before), tolerance),
    ]
