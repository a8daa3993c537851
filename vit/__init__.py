"""The parts of vit_model.py, one idea a file."""
