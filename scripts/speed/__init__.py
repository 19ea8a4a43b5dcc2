"""Compare the speed of both bundles with MONAI's modules."""
