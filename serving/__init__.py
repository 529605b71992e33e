"""Online: reads Redis and one published bundle, nothing else."""
