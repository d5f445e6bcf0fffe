"""What a sceptical reviewer would raise: about scores, about training, about saved adapters.

Every finding has a stable id, its numbers and a sentence. The gravest come first.
"""
