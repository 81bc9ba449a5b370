"""The pictures of a run stand in the trader's order, and each title is true in each case."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from crypto_lstm.evaluation.album import draw_album, draw_memory, draw_training, find_best_epoch
from crypto_lstm.evaluation.record import JudgementRecord
from crypto_lstm.evaluation.report_pictures import (
    _state_confusion,
    _state_reliability,
    describe_return,
    draw_equity,
    draw_months,
    draw_random,
    draw_trades,
)

HISTORY = {
    "loss": [1.1, 1.0, 0.9], "val_loss": [1.2, 1.1, 1.15], "accuracy": [0.3, 0.4, 0.5], "val_accuracy": [0.4, 0.5, 0.5]
}  # fmt: skip
ORDER = ["trades", "equity", "reliability", "months", "luck", "training", "confusion", "memory"]


def make_record(model=(1.0, 1.2, 1.1), hold=(1.0, 0.9, 0.8), nets=(2.0, -1.0), days=20, random_returns=(-1.0, 3.0)):
    """A record of a few points."""
    rng = np.random.default_rng(0)
    times = pd.date_range("2024-01-20", periods=len(model), freq=f"{days}D", tz="UTC")
    labels = rng.integers(0, 3, 60)
    answers = rng.dirichlet([3, 3, 3], 60).astype(np.float32)
    trades = pd.DataFrame(
        {
            "entry_time": times[[0] * len(nets)], "exit_time": times[[1] * len(nets)], "entry_price": 100.0,
            "exit_price": 101.0, "side": "long", "reason": "target", "net_pct": np.array(nets, dtype=np.float32),
        }
    )  # fmt: skip
    equity = {"model": np.array(model, np.float32), "buy and hold": np.array(hold, np.float32)}
    return JudgementRecord(
        labels.astype(np.int8), answers, answers, labels.astype(np.int8), times.as_unit("ns").asi8,
        np.linspace(100.0, 110.0, len(model)), equity, trades, np.array(random_returns, np.float32),
    )  # fmt: skip


def test_the_pictures_stand_in_the_order_of_a_trader():
    album = draw_album(make_record(), HISTORY, [{"peak_mb": 300.0}])
    assert list(album.pictures) == ORDER and len(album) == 8
    assert [line.split(":")[0] for line in repr(album).splitlines()] == ORDER
    page = album._repr_html_()
    assert page.count("<svg") == 8 and "http" not in page and "<script" not in page
    assert [page.index(f"<b>{picture.title}") for picture in album] == sorted(
        page.index(f"<b>{picture.title}") for picture in album
    )


def test_an_album_of_some_pictures_holds_them_alone():
    album = draw_album(make_record(), HISTORY)
    assert list(album["equity"].pictures) == ["equity"]
    assert list(album["months", "trades"].pictures) == ["months", "trades"]
    with pytest.raises(KeyError):
        album["no such picture"]


@pytest.mark.parametrize(
    ("percent", "words"),
    [(3.14, "gained 3.1 %"), (-0.4, "lost 0.4 %"), (0.04, "ended where it began"), (-1234.5, "lost 1,234.5 %")],
)
def test_a_return_is_in_words(percent, words):
    assert describe_return(percent) == words


def test_the_title_of_the_equity_names_gain_loss_and_the_worst_fall():
    title = draw_equity(make_record(), []).title
    assert title == (
        "The model gained 10.0 % after costs, buy and hold lost 20.0 %; the model fell by at most 8.3 % from its peak"
    )
    flat = draw_equity(make_record(model=(1.0, 1.0, 1.0)), []).title
    assert flat.startswith("The model ended where it began after costs") and "at most 0.0 %" in flat
    idle = draw_equity(make_record(model=(1.0, 1.0, 1.0), nets=()), []).title
    assert idle == "The model made no trade; buy and hold lost 20.0 %"
    assert "lost 100.0 %" in draw_equity(make_record(model=(1.0, 0.5, 0.0)), []).title


def test_the_title_of_the_trades_counts_them():
    assert draw_trades(make_record()).title == "1 of 2 trades gained; a trade gave +0.50 % after costs on average"
    assert draw_trades(make_record(nets=(-1.5,))).title == "The only trade lost 1.5 % after costs"
    assert draw_trades(make_record(nets=())).title == "The rule made no trade"


def test_the_title_of_the_months_names_the_best_and_the_worst():
    title = draw_months(make_record()).title
    assert title == "1 of 2 months gained; the best was 2024-02 (+10.0 %), the worst 2024-01 (+0.0 %)"
    only = draw_months(make_record(days=1)).title
    assert only == "In 2024-01, the only month, the model gained 10.0 %"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.062, 0.043, "nearer to the observed shares: from 6.2 to 4.3 points"),
        (0.02, 0.05, "further from the observed shares: from 2.0 to 5.0 points"),
        (0.0501, 0.0502, "leaves the probabilities as they were, 5.0 points"),
    ],
)
def test_the_title_of_the_calibration_says_whether_it_helped(before, after, words):
    assert words in _state_reliability(before, after)


def test_the_title_of_the_confusion_leaves_out_a_class_that_is_not_there():
    counts = np.array([[5, 5, 0], [0, 0, 0], [1, 0, 3]])
    shown = "SHORT 50%, LONG 75%; guessing recognises 50%"
    assert _state_confusion(counts) == f"Of each true class the network recognises {shown}"


def test_the_title_of_the_luck_picture_gives_the_percent_of_accounts():
    assert draw_random(make_record(random_returns=(-1.0, 3.0, 50.0, 60.0))).title.startswith("50.0 % of 4 accounts")


@pytest.mark.parametrize(
    ("monitor", "title"),
    [
        ("val_loss", "Epoch 2 of 3 is kept: validation loss 1.100, on the training part 1.000"),
        (
            "val_accuracy",
            "Epoch 2 of 3 is kept: validation accuracy 0.500; always answering the majority class gives 0.450",
        ),
        ("val_mcc", "3 epochs without a value of val_mcc"),
    ],
)
def test_the_title_of_the_training_names_the_epoch_that_is_kept(monitor, title):
    assert draw_training(HISTORY, monitor, 0.45).title == title


def test_the_best_epoch_is_the_first_of_equal_ones_and_ignores_nan():
    assert find_best_epoch({"val_loss": [float("nan"), 2.0, 1.0, 1.0]}, "val_loss") == 2
    assert find_best_epoch({"val_loss": [float("nan")]}, "val_loss") is None
    draw_training({"loss": [float("nan")], "val_loss": [float("nan")]}).to_figure()


def test_the_title_of_the_memory_names_what_is_known():
    records = [{"peak_mb": 300.0}, {"peak_mb": 310.0}]
    assert draw_memory(records).title == "The training took at most 310 MB"
    assert draw_memory(records, 320.0, 350.0, 4096.0).title.endswith("the forecast was 320 MB, the limit is 4,096 MB")


@pytest.mark.parametrize("memory", [(), [{}], [{"peak_mb": None}], [None], [{"peak_mb": "x"}]])
@pytest.mark.parametrize("history", [None, {}, {"loss": []}])
def test_what_is_missing_is_left_out(memory, history):
    assert len(draw_album(None, history, memory, {"config": None, "memory": [1]})) == 0


def test_names_from_outside_are_escaped():
    record = make_record()
    hostile = "<script>alert(1)</script>\x1b[2J$x$"
    record = dataclasses.replace(record, equity={**record.equity, hostile: record.equity["model"]})
    page = draw_album(record)._repr_html_()
    assert "<script" not in page and "\x1b" not in page and "alert(1)" in page
