"""What the features are: dataset description, Feast objects, request-time transforms."""
