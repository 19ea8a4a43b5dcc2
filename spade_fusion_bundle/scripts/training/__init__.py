"""Training steps of the two stages, and their data and learning rates."""
