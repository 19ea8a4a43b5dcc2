"""The answers of conditioning.py: requested against measured, sweeps of one covariate, distributions of sizes."""
