"""How time and memory grow with the number of records, run by hand."""
