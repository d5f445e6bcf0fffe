"""The figures on the page of reliability are those of the record."""

import json

import pytest

from faults import page


def test_the_page_says_what_the_record_says() -> None:
    record = json.loads(page.RECORD.read_text(encoding="utf-8"))
    now = page.PAGE.read_text(encoding="utf-8")
    assert page.made().text(now, record) == now
    assert page.made().check() == 0


def test_a_record_that_changes_changes_the_page() -> None:
    record = json.loads(page.RECORD.read_text(encoding="utf-8"))
    now = page.PAGE.read_text(encoding="utf-8")
    assert record
    for own in record.values():
        own["cases"] += 1
    assert page.made().text(now, record) != now


def test_the_record_has_no_case_that_failed() -> None:
    record = json.loads(page.RECORD.read_text(encoding="utf-8"))
    assert {name: own["failed"] for name, own in record.items() if own["failed"]} == {}


def test_a_page_without_a_place_for_figures_is_refused() -> None:
    with pytest.raises(ValueError, match="has no place for figures"):
        page.made().text("# Reliability\n", {})
