"""Tables as they are printed."""

import re

from rich.console import Console

from schemabank.common.tables import markdown_table, plain_table, without_empty_columns

HEAD = ["arm", "epochs", "score", "note"]


def test_a_column_that_is_empty_in_all_rows_goes() -> None:
    rows = [["lora", "", "0.1", ""], ["schemabank", "", "0.2", "chosen"]]
    kept = [["lora", "0.1", ""], ["schemabank", "0.2", "chosen"]]
    assert without_empty_columns(("t", HEAD, rows)) == ("t", ["arm", "score", "note"], kept)


def test_a_table_without_rows_keeps_its_head() -> None:
    assert without_empty_columns(("t", HEAD, [])) == ("t", HEAD, [])


def test_the_terminal_shows_no_empty_column() -> None:
    console = Console(width=80)
    with console.capture() as shown:
        console.print(plain_table("t", HEAD, [["lora", "", "0.1", ""]]))
    assert shown.get().replace("─", "").split() == ["t", "arm", "score", "lora", "0.1"]


def test_markdown_keeps_its_columns() -> None:
    assert markdown_table(["a"], [["x|y\nz"]])[2] == "| x\\|y z |"


def test_names_do_not_steer_the_terminal() -> None:
    console = Console(width=80)
    with console.capture() as shown:
        console.print(plain_table("t", HEAD, [["\x1b[2Jlora", "", "0.1", ""]]))
    assert "\x1b" not in shown.get()
    assert "[2Jlora" in shown.get()


def test_no_text_of_a_table_has_a_style() -> None:
    console = Console(width=200, force_terminal=True, color_system="truecolor")
    names = ["[red]t[/red]", "[link=//x.invalid]head[/link]", ":bomb: [/]"]
    plain, marked = (
        plain_table(title, [head], [[cell]]) for title, head, cell in (["t", "h", "c"], names)
    )
    shown = []
    for table in (plain, marked):
        with console.capture() as captured:
            console.print(table)
        shown.append(captured.get())
    sequences = [set(re.findall("\x1b[^m]*m|\x1b.", text)) for text in shown]
    assert sequences[0] == sequences[1]
    assert all(name in shown[1] for name in names)
