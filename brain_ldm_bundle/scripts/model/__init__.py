"""Networks, samplers and the records of their training."""
