"""From requests to volumes on disk."""
