"""The machine and its terminal; knows no photo and no model."""
