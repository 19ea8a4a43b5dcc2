"""Cohorts with their covariates, and tables of what was measured in them."""
