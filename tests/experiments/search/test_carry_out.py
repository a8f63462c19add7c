"""What a search asks before it hands its trials to Ray."""

from contextlib import nullcontext

import pytest

from tests.conftest import sentiment_rows, write_jsonl
from ttlora.errors import UserError
from ttlora.experiments.engine import Share
from ttlora.experiments.search import carry_out


def test_a_search_that_goes_on_has_the_rows_that_it_was_begun_with(begun, data, end, tmp_path, monkeypatch):
    handed_over = []
    monkeypatch.setattr(carry_out, "connected", lambda *_: nullcontext())
    monkeypatch.setattr(Share, "asked", lambda *_: Share(1, 0, 1))
    monkeypatch.setattr(Share, "at_a_time", 1)
    monkeypatch.setattr(carry_out, "do_runs", lambda *options, **keywords: handed_over.append(options))
    monkeypatch.setattr(begun.folder, "drop_checkpoints", lambda trials: None)
    rows = tmp_path / "rows"
    monkeypatch.setitem(begun.plan.shared, "data", str(rows))
    write_jsonl(rows / "sst2" / "train.jsonl", sentiment_rows(8, seed=1))
    write_jsonl(rows / "sst2" / "validation.jsonl", sentiment_rows(8, seed=2))
    carry_out.carry_out(begun, None, retry_failed=False)
    # nothing has been trained yet: other rows are as good
    write_jsonl(rows / "sst2" / "train.jsonl", sentiment_rows(9, seed=1))
    carry_out.carry_out(begun, None, retry_failed=False)
    end(begun.trial(begun.space.candidates(1, "random", 0)[0]), loss=0.5)
    carry_out.carry_out(begun, None, retry_failed=False)
    assert len(handed_over) == 3
    write_jsonl(rows / "sst2" / "train.jsonl", sentiment_rows(10, seed=1))
    with pytest.raises(UserError, match=r"other training rows than .* holds now: there were 9, and are 10"):
        carry_out.carry_out(begun, None, retry_failed=False)
    assert len(handed_over) == 3
