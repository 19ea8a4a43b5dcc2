"""Make volumes from label maps, and write them to disk."""
