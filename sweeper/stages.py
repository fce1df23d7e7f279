"""The stages that a run may be executed in, and what each of them needs.

A run is one process tree (`all`), or three one after the other in the same directory: `train` and
`score` in a slot, `pack` on processors alone, so that the slot trains the next run meanwhile.
"""

from __future__ import annotations

import enum

TRAINED, TRAINED_TENSORS, PACKED = "trained.json", "trained.pt", "packed.json"
ARTIFACT = "final_model.int6.ptz"
CHECKPOINT = "checkpoint.pt"  # the state of a run that has not ended


class Stage(enum.StrEnum):
    ALL = "all"
    TRAIN = "train"
    PACK = "pack"
    SCORE = "score"

    @property
    def in_slot(self) -> bool:
        """Whether it needs the GPUs of a run."""
        return self is not Stage.PACK

    @property
    def last(self) -> bool:
        """Whether it leaves the result."""
        return self in (Stage.ALL, Stage.SCORE)

    @property
    def needs(self) -> tuple[str, ...]:
        """The files of earlier stages that it reads; what vouches for the others comes last."""
        return NEEDS.get(self, ())


NEEDS = {
    Stage.PACK: (TRAINED_TENSORS, TRAINED),
    Stage.SCORE: (ARTIFACT, TRAINED, PACKED),
}
