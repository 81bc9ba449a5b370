"""Settings of all tests: the same ones as `make test` gives, for a run of `pytest` alone."""

import os
import tempfile
from collections.abc import Iterator

import pytest

# Before TensorFlow and matplotlib are imported: no greetings of TensorFlow, and plots without a screen.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "agg")

from support import forked, quick  # noqa: E402


def pytest_configure() -> None:
    forked.start_forker()


def pytest_unconfigure() -> None:
    forked.stop_forker()


@pytest.fixture(scope="module")
def bare_trainings() -> Iterator[None]:
    """Trainings of this file draw no pictures and fit no gradient boosting, see `support.quick`."""
    with quick.skip_pictures(), quick.skip_boosting():
        yield


@pytest.fixture(scope="module")
def no_graphs() -> Iterator[None]:
    """Networks of this file run without graphs, see `support.quick`."""
    with quick.skip_graphs():
        yield


# The ledger of trials of these tests is not that of the user.
_state = tempfile.TemporaryDirectory(prefix="crypto_lstm_state_")  # removed when the process ends
os.environ.setdefault("XDG_STATE_HOME", _state.name)
