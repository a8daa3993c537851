"""Why a model answers as it does, and what its splines do."""
