"""What explain_faithfulness.py measures a map of relevance by."""
