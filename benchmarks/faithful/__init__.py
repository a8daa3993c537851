"""What the benchmarks of explanations measure by, and how they share the work."""
