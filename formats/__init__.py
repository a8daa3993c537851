"""Files of models, theirs and ours."""
