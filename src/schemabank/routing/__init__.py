"""What routers choose, for which examples, and how that changes in training."""
