"""Evaluate reconstructions, generated volumes and models. No other folder imports this one."""
