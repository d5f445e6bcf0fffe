"""What runs and tables of results say: numbers, warnings, claims, and a look inside the router.

From the ground up: `reading`, `comparing` and `claims`, `sections` (the topics), `warnings`; then
`contents`, which lists what a report holds, `examine`, which finds it, `page`, and `command`.
`others` reports on results of other tools, `gate` says whether one may go on, and `planning` how
many seeds and items a comparison takes.
"""

__all__ = ["command", "contents", "page", "planning", "routing"]
