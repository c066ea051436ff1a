"""The journal of a sweep: lines that a kill has torn, and lines that are damaged."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from calrec_jax.errors import CalrecError
from calrec_jax.sweeps.journal import Journal


@hypothesis.given(st.integers(0, 200))
def test_a_torn_journal_gives_all_whole_lines(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("journal")
    journal = Journal(folder)
    for number in range(5):
        journal.append({"id": f"t{number}", "event": "begun"})
    data = journal.path.read_bytes()
    journal.path.write_bytes(data[:cut])
    assert len(Journal(folder).last()) == data[:cut].count(b"\n")
    Journal(folder).append({"id": "new", "event": "begun"})
    assert "new" in Journal(folder).last()


@pytest.mark.parametrize("line", ["[]", "3", "{}", "[" * 9999], ids=lambda line: line[:3])
def test_a_damaged_journal_is_an_error(tmp_path, line):
    (tmp_path / "trials.jsonl").write_text(f"{line}\n")
    with pytest.raises(CalrecError, match="trials.jsonl is damaged in line 1"):
        Journal(tmp_path).last()
