"""One file per table: the expectations that the table must meet."""
