"""What stands in the tables of a specification: settings, and how they become environment text."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

EnvValue = StrictBool | StrictInt | StrictFloat | StrictStr
EnvName = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
Env = dict[EnvName, EnvValue]
# The sweeper sets these itself, for every run -> what the user sets instead.
RESERVED = {"SEED": "`seeds`", "RUN_DIR": "--root", "STAGE": "[packing]"}
PATH_NAME = re.compile(r"DATA_DIR|RESUME_FROM|.*_(PATH|DIR)")
MAX_SEED = 2**63 - 1  # what the ledger can hold
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]


class Table(BaseModel):
    """A table of a specification: every key known, every value of its type, nothing changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def env_text(value: EnvValue) -> str:
    """A TOML value as an environment string; booleans are 0 and 1, as the field writes them."""
    if isinstance(value, bool):
        return str(int(value))
    return str(value)
