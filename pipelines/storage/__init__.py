"""What a dataset has published, kept in object storage: see `pipelines.storage.publications`."""
