"""From photos to answers."""
