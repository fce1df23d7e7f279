"""Errors that a person can act on; everything else is a bug and keeps its traceback."""

from __future__ import annotations


class UserError(ValueError):
    """What was asked cannot be done; the message says what is wrong and what to do."""


class SpecError(UserError):
    """A sweep's specification is wrong; the message names file, key and what is allowed."""


class ContractError(ValueError):
    """A run did not keep the process contract; the message says in which file and how."""


class UnreachableError(UserError):
    """A server did not answer; it may do so when it is asked again."""
