"""Scripts that measure both sides in one run and print a table; `python -m benchmarks.NAME`."""
