"""How many files this process may have open at once, which the system bounds twice.

A process may raise its own bound, often 1,024, to the other one, which is far above. It is not
raised as a matter of course, since programs that it starts inherit it.
"""

import resource

from schemabank.common.errors import InputError

SPARE = 256  # beside those that are asked for: models, data, logs, libraries


def allow_open_files(count: int, *, what: str, mend: str) -> None:
    """Make sure that so many more files can be open.

    Args:
        count: of files.
        what: needs them, for the error.
        mend: what to do where they cannot be had.

    Raises:
        InputError: the system does not allow as many.
    """
    own, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE
    if own == resource.RLIM_INFINITY or wanted <= own:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{what} has {count:,} files open at once, but the system allows {most:,} in all: "
            f"{mend}"
        ) from error
