"""What both bundles need; the same folder in each."""
