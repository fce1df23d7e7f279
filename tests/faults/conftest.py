"""The place of a module's sweeps, as the tests of the sweeper have it."""

from tests.sweeper.conftest import place, quiet

__all__ = ["place", "quiet"]
