import pytest

from dclr.methods import METHODS
from tests.training import fakes


@pytest.fixture(autouse=True)
def fake_method(monkeypatch):
    """The fake method is registered for a test."""
    monkeypatch.setitem(METHODS, "fake", (fakes.FakeConfig, fakes.FakeMethod))
