"""The denoising loop, the metrics and the report. Imports `data` only."""
