"""Make the HTML page of report.py."""
