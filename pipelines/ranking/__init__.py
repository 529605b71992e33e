"""The ranker: its training set and its models."""
