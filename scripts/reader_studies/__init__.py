"""The steps of a reader study: make its page, rate it by computed readers, score the results."""
