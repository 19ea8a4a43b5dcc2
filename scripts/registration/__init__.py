"""From a raw scan to the space of the model."""
