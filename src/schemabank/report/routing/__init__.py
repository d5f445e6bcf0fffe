"""A look inside the router: what it chooses, on what, and how that came about."""
