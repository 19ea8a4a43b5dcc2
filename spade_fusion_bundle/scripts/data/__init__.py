"""Find, check and read data, and turn them into tensors."""
