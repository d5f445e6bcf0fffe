"""What a sceptical reviewer would raise: about scores, about training, about saved adapters."""
