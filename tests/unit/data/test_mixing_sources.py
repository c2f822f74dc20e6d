"""Sources mixed by tokens, by documents and in sequence: shares, epochs, stages, and the same order everywhere."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from data_stand_ins import Data, Source
from tokenizers import pre_tokenizers

from flame.config import Stage
from flame.data import best_fit as best_fit_module
from flame.data.fingerprint import fingerprints
from flame.data.lane_states import merge_states
from flame.data.rows import RowMaker

WEIGHTS = (0.5, 0.3, 0.15, 0.05)
LATER = (0.1, 0.2, 0.3, 0.4)
LETTERS = "abcd"
PACKINGS = [{}, {"varlen": True, "context_len": 17}, {"packing": "best_fit"}, {"packing": "best_fit", "varlen": True}]


@pytest.fixture
def four(tmp_path):
    """Four sources whose documents are of one letter each, of very different lengths and numbers."""
    sources = []
    for letter, weight, documents, length in zip(LETTERS, WEIGHTS, (40, 31, 60, 12), (9, 90, 3, 40), strict=True):
        path = tmp_path / f"{letter}.jsonl"
        texts = [letter * (length + number % 5) for number in range(documents)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        sources.append(Source(str(path), weight=weight))
    return sources


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few rows, in this process only."""
    monkeypatch.setattr(best_fit_module, "BLOCK_TOKENS", 1024)


def split(options):
    """What of some options goes into ``[data]``."""
    data = {name: options[name] for name in ("packing", "mix", "stages", "too_long") if name in options}
    return {"data": Data(**data), **{name: value for name, value in options.items() if name not in data}}


def hashes(make_loader, sources, steps, options, world=1, workers=0, state=None):
    """Hashes of global batches, and the state after them."""
    loaders = [
        make_loader(*sources, world=world, rank=rank, workers=workers, **split(options)) for rank in range(world)
    ]
    for loader in loaders:
        loader.load_state_dict(state or {})
    found = list(islice(fingerprints(loaders, 8 // (2 * world)), steps))
    states = [loader.state_dict() for loader in loaders]
    return found, {**states[0], "lanes": merge_states(state["lanes"] for state in states)}


def shares(loader, rows):
    """Every source's share of the tokens in ``rows`` rows; padding is none of them."""
    counts = Counter()
    for row in islice(RowMaker(loader.plan, {lane: loader.plan.initial_state() for lane in range(12)}), rows):
        counts[row.source] += int((row.values[0] != 0).sum())
    total = sum(counts.values())
    return [counts[number] / total for number in range(4)]


@pytest.mark.parametrize("options", [PACKINGS[0], *(pytest.param(p, marks=pytest.mark.slow) for p in PACKINGS[1:])])
def test_weights_are_shares_of_tokens_within_1_percent_over_2000_steps(make_loader, four, options):
    loader = make_loader(*four, **split({**options, "global_batch_size": 4, "local_batch_size": 4, "seq_len": 24}))
    assert shares(loader, 4 * 2000) == pytest.approx(WEIGHTS, rel=0.01, abs=0.0005)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("options", [PACKINGS[0], PACKINGS[3]], ids=str)
def test_every_stage_has_its_own_shares(make_loader, four, options):
    stages = [Stage(101, list(LATER)), Stage(201, [0.0, 0.0, 1.0, 0.0])]
    loader = make_loader(*four, **split({**options, "stages": stages, "seq_len": 24}))
    rows = [row.source for row in islice(loader.traced_rows(), 8 * 220)]
    for first, last, weights in ((0, 100, WEIGHTS), (100, 200, LATER), (200, 220, (0, 0, 1, 0))):
        counts = Counter(rows[8 * first : 8 * last])
        assert [counts[n] / (8 * (last - first)) for n in range(4)] == pytest.approx(weights, abs=0.005)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [
        *({**packing, "stages": [Stage(4, list(LATER))]} for packing in PACKINGS),
        {"packing": "rows", "too_long": "cut"},
        {"mix": "documents", "packing": "best_fit"},
        {"mix": "sequence"},
    ],
    ids=str,
)
def test_batches_are_the_same_on_any_ranks_and_workers_and_after_three_restarts(
    make_loader, four, options, workers, request
):
    if not workers:
        request.getfixturevalue("small_blocks")
    if "mix" in options:
        four = [replace(source, weight=1.0) for source in four]
    expected, _ = hashes(make_loader, four, 12, options)
    assert len(set(expected)) > 6
    got, state = [], None
    for world, own, steps in ((1, workers, 2), (2, 0, 3), (4, 0, 3), (2, workers // 2, 4)):
        found, state = hashes(make_loader, four, steps, options, world, own, state)
        got += found
    assert got == expected


def documents_of(loader, rows):
    """(source, document) of every span in some rows."""
    return [(s.source, s.document) for row in islice(loader.traced_rows(), rows) for s in row.spans]


@pytest.mark.parametrize("epochs", [0.5, 1.0, 3.0])
def test_no_source_is_read_more_often_than_its_epochs_and_others_take_over(make_loader, four, epochs):
    sources = [replace(four[0], epochs=epochs), *four[1:]]
    loader = make_loader(*sources, data=Data(packing="rows"), seq_len=128)
    rows = list(islice(loader.traced_rows(), 8 * 110))
    counts = Counter((s.source, s.document) for row in rows for s in row.spans)
    of_first = [counts[0, document] for document in range(40)]
    assert sum(of_first) == 40 * epochs and max(of_first) == max(1, epochs)
    last = Counter(row.source for row in rows[-400:])
    assert [last[number] / 400 for number in range(4)] == pytest.approx([0, 0.6, 0.3, 0.1], abs=0.01)


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
@pytest.mark.parametrize("world", [1, 2])
def test_when_all_sources_have_ended_every_rank_goes_on_with_blank_batches(make_loader, four, packing, world):
    sources = [replace(source, epochs=2) for source in four]
    options = split({"packing": packing})
    loaders = [make_loader(*sources, world=world, rank=rank, **options) for rank in range(world)]
    seen = Counter()
    for loader in loaders:
        steps = [(batch, loader.is_blank) for batch in islice(loader, 120 * 4 // world)]
        blank = [is_blank for _, is_blank in steps]
        assert blank[-1] and not blank[0]
        for (inputs, labels), is_blank in steps:
            assert is_blank == bool((labels == -100).all() and not inputs["input_ids"].any())
    for loader in (make_loader(*sources, world=world, rank=rank, **options) for rank in range(world)):
        seen.update({pair: 0 for pair in documents_of(loader, 960 // world)})
    assert len(seen) == 40 + 31 + 60 + 12


def test_mixed_by_documents_all_sources_are_one_collection(make_loader, four):
    sources = [replace(source, weight=1.0, epochs=2) for source in [*four, four[3]]]
    loader = make_loader(*sources, data=Data(mix="documents", packing="rows"), seq_len=128)
    rows = [row for row in islice(loader.traced_rows(), 500) if not row.is_blank]
    counts = Counter((s.source, s.document) for row in rows for s in row.spans)
    assert len(counts) == 40 + 31 + 60 + 12 + 12 and set(counts.values()) == {2}
    early = Counter(s.source for row in rows[:155] for s in row.spans)
    assert min(early.values()) > 3, "shuffled among each other"


def test_in_sequence_a_source_begins_where_the_one_before_it_ends(make_loader, four):
    sources = [replace(source, weight=1.0) for source in four]
    data = Data(mix="sequence", packing="rows", lanes_per_row=1)
    loader = make_loader(*sources, data=data, seq_len=128, global_batch_size=1, local_batch_size=1)
    order = [row.source for row in islice(loader.traced_rows(), 200)]
    assert order == [0] * 40 + [1] * 31 + [2] * 60 + [3] * 69, "the last one goes on"


def test_one_pass_gives_every_document_once_however_it_is_packed(make_loader, four):
    for packing in ("stream", "best_fit", "rows"):
        loader = make_loader(*four, data=Data(packing=packing, mix="tokens"), repeat=False)
        ids = torch.cat([inputs["input_ids"].flatten() for inputs, _ in loader])
        starts = int((ids == 256).sum())
        assert starts == 40 + 31 + 60 + 12, packing
        assert loader.skipped == {}


@pytest.mark.usefixtures("small_blocks")
def test_spans_say_where_every_token_is_from(make_loader, four):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    for packing in ("stream", "best_fit", "rows"):
        for row in islice(make_loader(*four, data=Data(packing=packing)).traced_rows(), 60):
            assert row.spans
            for start, stop, source, document in row.spans:
                symbols = set(row.values[0, start:stop].tolist()) - {256, 257}
                assert symbols <= {alphabet.index(LETTERS[source])}
                assert re.fullmatch(r"\d+", str(document))
            assert [span.start for span in row.spans[1:]] == [span.stop for span in row.spans[:-1]]
            assert not np.any(row.values[0, row.spans[-1].stop :])
