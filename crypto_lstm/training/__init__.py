"""A whole training: run folder, checkpoints, trainer, and the saved run."""
