"""Training steps of the two stages, and their latents and learning rates."""
