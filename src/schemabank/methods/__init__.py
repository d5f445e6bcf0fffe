"""What a run may train beside LoRA, and when: schema banks, tags and the stages of a curriculum."""

__all__ = [
    "attach",
    "bank",
    "curriculum",
    "tags",
]
