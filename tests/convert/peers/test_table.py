"""The documentation's table of projects is what the cases say."""

from tests.convert.peers.__main__ import PAGE, cases, split, table


def test_the_table_in_the_documentation_is_that_of_the_cases():
    assert split(PAGE.read_text())[1] == table(), "run python -m tests.convert.peers"


def test_no_case_is_there_twice():
    names = [(case.project, case.file) for case in cases()]
    assert len(names) == len(set(names)) and len(names) >= 150
