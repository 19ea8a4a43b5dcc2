"""Evaluate planes, fusion and synthetic training data. No other folder imports this one."""
