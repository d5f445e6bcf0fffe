"""Two arms compared: over seeds, over seeds and items, by their best settings.

`compare` takes any table of scores; `gather` adds what a folder of runs knows.
"""
