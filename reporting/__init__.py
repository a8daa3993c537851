"""What a run tells: numbers, plots, a page."""
