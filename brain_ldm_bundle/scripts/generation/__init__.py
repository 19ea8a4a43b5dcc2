"""Generate or edit volumes as requested, and write them to disk."""
