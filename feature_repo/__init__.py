"""What the features are: the dataset description, the Feast objects, the request-time transforms."""
