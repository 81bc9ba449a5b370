"""How far forecasts of memory are from measured trainings."""
