"""Score sets of heads that any generator made against real scans."""
