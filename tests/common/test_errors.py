"""Messages of errors: what is too long to be read is cut, and how to mend it stays."""

import pickle

from schemabank.common.errors import LONGEST_LINE, LONGEST_WORD, InputError


def test_a_message_of_usual_length_is_as_it_was() -> None:
    message = f"{'/a/path' * 40!r} is no file:\n  allowed are {', '.join(['files'] * 100)}"
    assert str(InputError(message)) == message


def test_long_words_and_lines_lose_their_middle_and_keep_the_mend() -> None:
    for value in ("x" * 9000, "x " * 9000):
        error = InputError(f"r is {value!r}, allowed is a number: correct it")
        assert len(str(error)) <= LONGEST_LINE
        assert str(error).startswith("r is 'x")
        assert str(error).endswith(
            "x', allowed is a number: correct it"
            if " " not in value
            else "allowed is a number: correct it"
        )
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 -- ours
    assert len(str(InputError("y" * 9000))) <= LONGEST_WORD
