"""The network that measures volumes, and tables of volumes."""
