"""Training steps against transformers' Mixtral in a plain loop: `python -m benchmarks.train`."""
