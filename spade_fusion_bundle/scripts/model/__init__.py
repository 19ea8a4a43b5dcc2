"""Networks, losses and the files of their weights."""
