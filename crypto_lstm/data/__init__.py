"""From a candle file to features, labels and windows."""
