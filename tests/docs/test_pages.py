"""The pages hang together: every link leads somewhere, every page is linked, none names another's place by mistake."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import PAGES, ROOT

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)")


def links(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [(page.parent / target).resolve() for target in LINK.findall(text) if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page):
    assert [str(target) for target in links(page) if not target.exists()] == []


def test_every_page_is_linked():
    assert {page.resolve() for page in PAGES} - {target for page in PAGES for target in links(page)} <= {
        (ROOT / "README.md").resolve()
    }
