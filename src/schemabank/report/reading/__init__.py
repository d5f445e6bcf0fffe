"""What is read from disk: tables of results, and folders of runs as such tables."""
