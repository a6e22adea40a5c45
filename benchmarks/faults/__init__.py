"""What clients feel while a service's processes are killed, stopped or resized: `python -m benchmarks.faults`."""
