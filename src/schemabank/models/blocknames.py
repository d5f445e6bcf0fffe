"""What decoders call their list of blocks; known without a model, and so without torch."""

# "layers" is Llama's name, "h" GPT-2's, "blocks" MPT's.
BLOCK_LISTS = ("layers", "h", "blocks")
