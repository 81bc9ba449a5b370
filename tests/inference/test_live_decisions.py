"""`update` and `decide` against a plain oracle; a round of a million calls is `python -m benchmarks live`."""

from __future__ import annotations

from support import decision_oracle


def test_no_call_of_update_or_decide_differs_from_the_oracle():
    tally = decision_oracle.fuzz_decisions(calls=1500, seed=1, check_every=7)
    assert tally.faults == []
    assert tally.refused > 50 and tally.with_hole > 100 and tally.windows > 100


def test_the_oracle_notices_candles_that_nobody_passed(monkeypatch):
    make = decision_oracle.make_predictor

    def make_filling():
        predictor = make()
        predictor.fill_gaps = True
        return predictor

    monkeypatch.setattr(decision_oracle, "make_predictor", make_filling)
    assert decision_oracle.fuzz_decisions(calls=500, seed=1, check_every=7).faults


def test_the_oracle_notices_a_window_that_is_one_candle_late(monkeypatch):
    window = decision_oracle.Oracle.window
    shifted = lambda oracle: (found := window(oracle)) and [found[0], *found[:-1]]  # noqa: E731
    monkeypatch.setattr(decision_oracle.Oracle, "window", shifted)
    faults = decision_oracle.fuzz_decisions(calls=800, seed=1, check_every=7).faults
    assert len(faults) > 10
