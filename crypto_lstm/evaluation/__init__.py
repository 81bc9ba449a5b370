"""The quality of a model: metrics with confidence intervals beside baselines."""
