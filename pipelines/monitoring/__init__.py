"""What watches a published ranker: drift and skew of its inputs, ages of its features, one page."""
