"""Model files, read with care: HDF5, the Keras archive, its schema, and compatibility with a configuration."""
