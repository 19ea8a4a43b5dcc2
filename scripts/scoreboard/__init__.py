"""Score sets of heads that any generator made against real scans."""

FEWEST = 7  # volumes of a set, two more than the neighbours that density and coverage look at
