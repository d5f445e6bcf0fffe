"""What a completion is, what ends it, and what is known of completions from an earlier call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

StopReason = Literal["end_token", "stop_text", "length"]
Stopped = Callable[[Sequence[int], list[int]], bool]


@dataclass
class Completion:
    """Generated tokens without the end token, and why the completion ended."""

    tokens: list[int] = field(default_factory=list)
    stop_reason: StopReason = "length"

    @property
    def num_new_tokens(self) -> int:
        """Number of generated tokens, with the end token."""
        return len(self.tokens) + (self.stop_reason == "end_token")

    def follow(self, known: "Completion") -> bool:
        """Add the next token of one that is known; return whether it ends with it."""
        if len(self.tokens) < len(known.tokens):
            self.tokens.append(known.tokens[len(self.tokens)])
        else:
            self.stop_reason = "end_token"
        if self.num_new_tokens < known.num_new_tokens:
            return False
        self.stop_reason = known.stop_reason
        return True


@dataclass(frozen=True)
class Limits:
    """What ends a completion.

    Attributes:
        max_new_tokens: limit of a completion.
        ends: tokens that end it.
        stopped: from a prompt's tokens and its completion's, whether the completion ends here,
            though none is an end token.
    """

    max_new_tokens: int
    ends: frozenset[int]
    stopped: Stopped

    def extend(self, completion: Completion, token: int, prompt: Sequence[int]) -> bool:
        """Add a token to a prompt's completion; return whether the completion ends with it."""
        if token in self.ends:
            completion.stop_reason = "end_token"
        else:
            completion.tokens.append(token)
            if self.stopped(prompt, completion.tokens):
                completion.stop_reason = "stop_text"
        return (
            completion.num_new_tokens == self.max_new_tokens or completion.stop_reason != "length"
        )


class Memory:
    """What is known of completions from an earlier call, and who is told of new ones: here, no one.

    Those that are known have to be what would be computed now.
    """

    def completions(self, slot: int) -> Mapping[int, Completion]:
        """Return the completions of a slot that are known, by the prompt's index."""
        del slot
        return {}

    def completed(self, slot: int, prompt: int, completion: Completion) -> None:
        """Take note of a completion that was not known."""
