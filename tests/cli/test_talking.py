"""The command chat: lines in, answers out, with a memory where there is a chat template."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

import schemabank
from chattemplates import CHATML
from schemabank.cli import app, talking
from schemabank.common.errors import InputError
from schemabank.runs.chatting import Conversation, Manner, open_conversation
from tiny import tiny_model, tiny_tokenizer
from tinyruns import Finished

LORA = {"r": 2, "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter of a model whose tokenizer has a chat template, and that model."""
    folder = tmp_path_factory.mktemp("chat")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.chat_template = CHATML
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    tuner = schemabank.Tuner(model, tokenizer, schemabank.RunConfig(arm="lora", lora=LORA))
    tuner.save_pretrained(folder / "adapter")
    return folder / "adapter", folder / "model"


def opened(adapter: tuple[Path, Path], notes: list[str], **how: object) -> Conversation:
    asked = {"max_new_tokens": 4, **how.pop("asked", {})}  # type: ignore[dict-item]
    manner = Manner(asked=asked, **how)  # type: ignore[arg-type]
    return open_conversation(adapter[0], manner, notes.append, model=str(adapter[1]))


def ran(*arguments: object, lines: str) -> Result:
    return CliRunner().invoke(app, ["chat", *map(str, arguments)], input=lines)


def test_piped_lines_are_answered_one_by_one(finished: Finished) -> None:
    ended = ran(finished.lora.folder, "--max-new-tokens", 3, lines="1+1=?\n\n /reset\n1+1=?\n")
    assert ended.exit_code == 0, ended.output
    assert "the model has no chat template: every line is completed by itself" in ended.stderr
    first, second = ended.stdout.splitlines()
    assert first == second
    made = AutoModelForCausalLM.from_pretrained(finished.model)
    tuner = schemabank.Tuner.from_adapter(made, tiny_tokenizer(), finished.lora.folder / "adapter")
    assert tuner.generate(["1+1=?"], max_new_tokens=3)[0].splitlines()[0] == first


def test_the_untouched_model_talks_too_and_quit_ends(finished: Finished) -> None:
    ended = ran(finished.base.folder, "--max-new-tokens", 2, lines="1+1=?\n/quit\n2+2=?\n")
    assert (ended.exit_code, len(ended.stdout.splitlines())) == (0, 1), ended.output


def test_a_chat_remembers_what_was_said_until_it_is_reset(adapter: tuple[Path, Path]) -> None:
    notes: list[str] = []
    talk = opened(adapter, notes, system="Be kind.")
    assert notes[-1].startswith("trained without the chat template: --plain completes")
    first = talk.answer("1+1")
    later = talk.answer("1+1")
    talk.reset()
    assert talk.answer("1+1") == first
    assert talk.remembers
    assert talk.answer("1+1") == later
    assert first != later, "the second question stands behind the first answer"
    plain = opened(adapter, notes, plain=True)
    assert plain.answer("1+1") == plain.answer("1+1")


def test_what_cannot_be_answered_is_not_kept(
    adapter: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    talk = opened(adapter, [])
    first = talk.answer("1+1")
    talk.reset()

    def lines() -> Iterator[str]:
        yield from ("1 " * 10_000, "1+1")

    talking.converse(talk, lines(), keeps_on=True)
    said = capsys.readouterr()
    assert said.err.startswith("line 1 cannot be answered: 'prompt/0' has")
    assert "forgets" not in said.err, "nothing was said before it"
    assert said.out.splitlines() == first.splitlines()
    with pytest.raises(InputError):
        talking.converse(talk, lines(), keeps_on=False)


def test_a_system_turn_needs_a_chat_template(adapter: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="but without a chat template there are no turns: leave"):
        opened(adapter, [], system="Be kind.", plain=True)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    ended = ran(tmp_path / "none", lines="")
    assert isinstance(ended.exception, InputError)
    assert "is neither a finished run" in str(ended.exception)


def test_a_person_is_asked_until_the_input_ends(
    adapter: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["1+1"])

    def read(prompt: str) -> str:
        assert prompt == talking.PROMPT
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    talk = opened(adapter, [])
    talking.converse(talk, talking.typed(), keeps_on=True)
    said = capsys.readouterr()
    assert said.err == talking.HINT
    talk.reset()
    assert said.out == f"{talk.answer('1+1')}\n\n"


class Scripted:
    """Gives or raises what it was told to, and keeps what it was asked."""

    def __init__(self, *told: str | BaseException, remembers: bool = False) -> None:
        self.told, self.asked, self.remembers = iter(told), [], remembers  # type: ignore[var-annotated]

    def answer(self, text: str) -> str:
        self.asked.append(text)
        told = next(self.told)
        if isinstance(told, BaseException):
            raise told
        return told


def conversed(talk: Scripted, *lines: str, keeps_on: bool) -> None:
    talking.converse(talk, iter(lines), keeps_on=keeps_on)  # type: ignore[arg-type]


def test_answers_do_not_steer_a_terminal_but_keep_tabs_and_joiners(
    capsys: pytest.CaptureFixture[str],
) -> None:
    conversed(Scripted("\x1b[2Ja\tb\r\u200d\nc"), "q", keeps_on=True)
    assert capsys.readouterr().out == " [2Ja\tb \u200d\nc\n"


def test_blanks_of_a_line_are_a_part_of_what_is_asked() -> None:
    talk = Scripted("4", "5")
    conversed(talk, "2 + 2 = \n", " \n", "  x\r\n", keeps_on=False)
    assert talk.asked == ["2 + 2 = ", "  x"]


def test_an_answer_may_be_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    conversed(Scripted(KeyboardInterrupt(), "4"), "1", "2", keeps_on=True)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("4\n", "\nstopped: question and answer are not kept\n")
    with pytest.raises(KeyboardInterrupt):
        conversed(Scripted(KeyboardInterrupt()), "1", keeps_on=False)


def test_a_line_that_cannot_be_answered_is_named_with_the_mend() -> None:
    talk = Scripted("4", InputError("too long"), remembers=True)
    with pytest.raises(InputError, match="line 2 cannot be answered: too long; /reset forgets"):
        conversed(talk, "1", "2", keeps_on=False)


def test_a_typed_line_that_is_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_: str) -> str:
        return b"\xff".decode()

    monkeypatch.setattr("builtins.input", read)
    with pytest.raises(InputError, match="the input is no UTF-8"):
        next(talking.typed())


def test_a_line_that_is_no_unicode_is_refused(adapter: tuple[Path, Path]) -> None:
    """As the C locale reads bytes that are no text."""
    with pytest.raises(InputError, match="line 1 cannot be answered: prompt 0 is no Unicode"):
        talking.converse(opened(adapter, []), iter(["1\udcff\n"]), keeps_on=False)
