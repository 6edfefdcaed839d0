"""One run on a GPU that measures speed and checks results, run by hand."""
