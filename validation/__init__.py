"""The gates between the steps."""
