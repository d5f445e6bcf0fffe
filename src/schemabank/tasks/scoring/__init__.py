"""From completions to scores: answers found in texts, metrics, and scores of items and groups."""
