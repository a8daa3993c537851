"""A page to drop photos on: a model behind a small web server, for people beside you."""
