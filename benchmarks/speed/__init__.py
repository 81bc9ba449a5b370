"""How fast the package is, beside Keras, PyTorch, NumPy and pandas in the same run."""
