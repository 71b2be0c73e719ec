"""The tests that docs/other-servers.md names for bugs of other servers exist."""

from __future__ import annotations

import re

import pytest

from .. import rfc

NAMED = re.findall(r"\| `([^`]+)` \|$", (rfc.HOUSE / "docs" / "other-servers.md").read_text(), re.M)


@pytest.mark.parametrize("named", dict.fromkeys(NAMED))
def test_known_bugs_name_existing_tests(named: str) -> None:
    path, _, function = named.partition("::")
    text = (rfc.HOUSE / "tests" / path).read_text()
    assert not function or re.search(rf"^def {function}\(", text, re.M)


def test_all_rows_name_one() -> None:
    table = (rfc.HOUSE / "docs" / "other-servers.md").read_text()
    assert len(NAMED) == table.count("\n|") - 2 > 25
