"""docs/rfc.toml, the tests and the source refer to the same requirements."""

from __future__ import annotations

import re

from .. import rfc

KNOWN = {each.id: each for each in rfc.requirements()}


def test_every_requirement_that_a_test_names_exists() -> None:
    assert {name: tests for name, tests in rfc.named().items() if name not in KNOWN} == {}


def test_every_requirement_is_shown_or_says_why_not() -> None:
    named = rfc.named()
    silent = [e.id for e in KNOWN.values() if not (e.id in named or e.refused or e.not_yet)]
    assert silent == [], "name a test, or write refused or not-yet in docs/rfc.toml"


def test_every_section_that_the_source_cites_is_known() -> None:
    known = rfc.sections()
    cited = {
        f"{number} §{section}"
        for path in (rfc.HOUSE / "src").rglob("*.py")
        for number, section in re.findall(r"RFC (\d{4}) §(\d+(?:\.\d+)*)", path.read_text())
    }
    assert cited
    strange = [e for e in sorted(cited) if not any(f"{e}.".startswith(f"{k}.") for k in known)]
    assert strange == [], "does it exist? then give it a line under [also] in docs/rfc.toml"


def test_every_requirement_is_written_in_full() -> None:
    for each in KNOWN.values():
        assert each.level in ("MUST", "SHOULD", "MAY", "fact", "ours"), each.id
        assert each.side in ("server", "client", "both"), each.id
        assert each.text.endswith("."), each.id
        assert not (each.refused and each.not_yet), each.id
        for source in each.sources:
            assert re.fullmatch(r"\d{4}( §\d+(\.\d+)*)?", source), each.id


def test_a_transcript_names_requirements_at_its_head_only() -> None:
    text = "# RFC 1939 §5: why P-999.\n# P-100 P-101\nC: STAT\n# P-102\n"
    assert list(rfc._in_transcript(text)) == ["P-100", "P-101"]
