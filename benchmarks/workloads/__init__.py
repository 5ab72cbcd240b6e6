"""Jobs whose use of CPU, memory and disk is known; `python -S -m benchmarks.workloads NAME`."""
