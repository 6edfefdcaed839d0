"""Lightning callbacks, one per file: mitigations, traces, writers, monitors. Imports `infer` and `data`."""
