"""The document's method: schema banks on blocks, tags that teach their routers, a curriculum.

`bank` has its mathematics, `penalties` its terms of the loss, and `attach` puts banks on blocks.
`curriculum` and `course` decide what each step does; `tags` and `tagging` make the examples' tags.
"""
