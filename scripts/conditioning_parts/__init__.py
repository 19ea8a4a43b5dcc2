"""The analyses of conditioning.py: requested against measured, sweeps of one covariate, and distributions of sizes."""
