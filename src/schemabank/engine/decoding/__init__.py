"""Completions of all slots at once, or by transformers' generate where that is impossible."""
