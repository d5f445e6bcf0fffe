"""What is read from disk: tables of results, and folders of runs.

Both come out as a `ScoreTable`, so that the same code compares them.
"""
