"""Questions about data and models: learning rates, windows on the price, what a model reads and where it fails."""
