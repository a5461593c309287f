import logging

import pytest


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What transformers warns about, which it says once a process."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.getLoggerClass().warning_once.cache_clear()
    return caplog
