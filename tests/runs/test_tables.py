from schemabank.adapters.peftcheck import FIELD, PeftCheck
from schemabank.runs.tables import check_tables


def test_adapters_in_doubt_stand_under_the_reason_for_it() -> None:
    checks = [
        PeftCheck(1e-15, 1e-13),
        PeftCheck(3e-4, 1e-13),
        PeftCheck(None, 1e-13, "its logits are not finite"),
        PeftCheck(None, None, "no kernel for Double"),
    ]
    results = [{"arm": "lora", "seed": n, FIELD: c.row()} for n, c in enumerate(checks)]
    (different, _, rows), (unknown, _, others) = check_tables([None, {"arm": "base"}, *results])
    assert different == "WARNING: adapters that are not as trained, by stock PEFT"
    assert [tuple(row) for row in rows] == [
        ("lora", "1", "3.0e-04", "1.0e-13", ""),
        ("lora", "2", "", "1.0e-13", "its logits are not finite"),
    ]
    assert unknown == "WARNING: adapters that stock PEFT could not be compared with"
    assert [tuple(row) for row in others] == [("lora", "3", "", "", "no kernel for Double")]
    assert check_tables([None, results[0]]) == []
    assert [title for title, *_ in check_tables([results[3]])] == [unknown]
