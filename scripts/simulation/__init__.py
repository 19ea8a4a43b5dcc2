"""Simulated heads: T1w MRI and label maps."""
