"""What the tests of pages share."""

from __future__ import annotations

import pytest


@pytest.fixture
def unpictured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, where they are not what is looked at."""
    from sweeper.page import write as module

    monkeypatch.setattr(module, "figures", lambda facts: "")
