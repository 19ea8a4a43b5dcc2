"""The reader study: its page, computed readers, scores."""
