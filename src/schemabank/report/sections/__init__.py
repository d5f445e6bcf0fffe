"""A report's topics, a file each: what it finds, its charts and its tables.

To add a chart or a topic, write its file here and name it in `schemabank.report.contents`. A topic
has `find` (typed data from runs), `chart` and `table`, as far as it needs them.
"""
