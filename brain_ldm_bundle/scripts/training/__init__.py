"""One training step per file, and what the stages need."""
