"""From label maps to volumes on disk."""
