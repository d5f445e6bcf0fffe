"""A report's topics, a file each: its data, its chart and its tables."""
