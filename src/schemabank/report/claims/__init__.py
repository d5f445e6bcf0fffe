"""Published figures compared with the rows that they were derived from.

`judge_claims` reads a file of claims and says of each whether it follows.
"""
