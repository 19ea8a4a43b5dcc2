"""Label the structures of a T1w scan by a small network."""
