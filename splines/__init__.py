"""The mathematics under kan.py: bases, products, grids; needs torch alone."""
