"""The parts of benchmarks/kan_claims.py: each measures, tabulates and draws one claim."""
