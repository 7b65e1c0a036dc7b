"""Whatever can be evaluated, opened as a predictor."""
