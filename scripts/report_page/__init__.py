"""The HTML page of report.py."""
