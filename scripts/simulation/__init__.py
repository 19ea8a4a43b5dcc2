"""Simulated heads."""
