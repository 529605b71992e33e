"""Splits, metrics and the report."""
