"""Finetuning: Lightning modules and data modules. Imports `data` only."""
