"""The document's method: schema banks on blocks, tags that teach their routers, a curriculum.

`bank` is its mathematics, `penalties` what it adds to the loss, `attach` puts it on blocks,
`curriculum` and `course` say what each step does, `tags` and `tagging` make examples' tags.
"""
