"""Data sets, duplication, prompts. Imports nothing from `infer`, `callbacks` or `train`."""
