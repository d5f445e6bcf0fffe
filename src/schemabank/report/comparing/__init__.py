"""Two arms held against each other: over seeds, over items, and by their best settings."""
