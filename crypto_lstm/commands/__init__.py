"""The command line `crypto-lstm`."""
