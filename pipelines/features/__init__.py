"""One file per feature view: lake tables in, one feature table out, as Ibis expressions."""
