"""One hop over every transport, side by side: `python -m benchmarks.hop`."""
