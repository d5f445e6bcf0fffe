"""Published figures held against the rows that they were derived from."""
