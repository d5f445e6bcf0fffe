"""What a run may train beside LoRA, and when: schema banks, tags and the stages of a curriculum.

`bank` is the method's mathematics, `attach` puts it on blocks, `curriculum` is the schedule, `tags`
makes examples' tags.
"""

__all__ = [
    "attach",
    "bank",
    "curriculum",
    "tags",
]
