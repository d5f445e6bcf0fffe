"""A report on a table of results: its numbers, a reviewer's warnings, and what was claimed."""
