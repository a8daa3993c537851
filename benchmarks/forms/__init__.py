"""What `benchmarks/worth.py` is made of: photos, forms, one training, differences."""
