"""From files of photos to tensors."""
