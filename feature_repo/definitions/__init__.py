"""Feast entities, sources, views and services, derived from a dataset description."""
