"""The two controls of everything that claims to learn: a fair game, where nothing may, and a planted edge, where it must."""

import pytest

from crypto_lstm.data.synthetic import synthetic_candles
from crypto_lstm.commands.demo import DEMO_CANDLES, DEMO_CONFIG, DEMO_EDGE, DEMO_SEED
from crypto_lstm.training.trainer import train


def run(edge: float, folder) -> object:
    candles = synthetic_candles(DEMO_CANDLES, seed=DEMO_SEED, edge=edge)
    return train(candles, DEMO_CONFIG.replace(epochs=3), folder, tensorboard=False)


@pytest.fixture(scope="module")
def fair(tmp_path_factory):
    return run(0.0, tmp_path_factory.mktemp("fair") / "run")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return run(DEMO_EDGE, tmp_path_factory.mktemp("planted") / "run")


def test_nothing_beats_the_baselines_on_a_fair_game(fair):
    for evaluation in (fair.validation, fair.test):
        assert evaluation.intervals, "the part is long enough to tell"
        assert not any(evaluation.beats.values()) and not evaluation.learnt
        assert "nothing beats the baselines" in evaluation.verdict


def test_the_planted_edge_is_learnt_and_holds_on_test_data(planted):
    assert planted.test.learnt and planted.test.beats["log_loss"]
    low, _ = planted.test.intervals["balanced_accuracy"]
    best = max(baseline["balanced_accuracy"] for baseline in planted.test.baselines.values())
    assert low - best > 0.02, f"margin {low - best:.3f} of the interval's lower end"
    assert "beats the baselines beyond chance" in planted.test.verdict
