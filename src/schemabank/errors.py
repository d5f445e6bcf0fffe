"""The one exception that means "your input is wrong", which the command line turns into exit 2."""


class InputError(ValueError):
    """Bad input from outside: a setting, a file, a model or a data set.

    Its message is one sentence that names the value, what is allowed and how to mend it.
    """
