"""Reports on folders of runs and on tables of results, whatever made them.

From the ground up: `reading`, `comparing` and `claims`, `sections` (the topics), `warnings`; then
`contents`, which lists what a report holds, `examine`, which finds it, `page`, and `command`.
"""
