"""Batch: raw tables in; feature tables, candidates and models out."""
