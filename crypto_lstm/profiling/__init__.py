"""The memory of a training: the batch size that fits, measurements, and a monitor."""
