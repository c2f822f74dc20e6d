"""Near duplicates: planted ones are found, others stay, and the result is always the same."""

import random

import numpy as np
import pytest
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from prepared_texts import digests, kept, make_builder, notes, random_texts, run_stages

from flame.data.prepare.dedup.minhash import MinhashSignatures, clusters
from flame.data.prepare.documents import write_json
from flame.data.prepare.job import Input, PrepareJob
from flame.data.prepare.reading.plan import Plan
from flame.data.prepare.reporting.collect import collect
from flame.data.prepare.reporting.markdown import markdown

COPIES = 40


def changed(text: str, words: int, draw: random.Random) -> str:
    """The text with so many words replaced, far apart."""
    parts = text.split()
    step = len(parts) // words
    for number in range(words):
        parts[number * step + draw.randrange(step)] = f"new{draw.randrange(10**6)}"
    return " ".join(parts)


def planted() -> list[str]:
    """40 documents, then each with 1% of its words changed (similarity 0.9), then half of each with another half."""
    draw = random.Random(1)
    texts = random_texts(COPIES, (200, 200))
    halves = [" ".join(text.split()[:100]) for text in texts]
    other = [" ".join(text.split()[:100]) for text in random_texts(COPIES, (200, 200), seed=2)]
    mixed = [f"{half} {rest}" for half, rest in zip(halves, other, strict=True)]
    return [*texts, *(changed(text, 2, draw) for text in texts), *mixed]


@pytest.mark.parametrize("tasks", [1, 3])
def test_near_duplicates_are_found_and_halves_are_not(tmp_path, tasks):
    builder = make_builder(tmp_path, planted(), tasks)
    assert kept(builder) == [*range(COPIES), *range(2 * COPIES, 3 * COPIES)]
    [note] = notes(builder, "minhash_clusters")
    assert note["sizes"] == {"2": COPIES}
    run_stages(builder)
    [pairs] = notes(builder, "minhash_pairs")
    assert len(pairs) == 10
    for pair in pairs:
        assert int(pair["dropped"]["id"][6:]) == int(pair["kept"]["id"][6:]) + COPIES


def test_a_second_run_writes_the_same_signatures(tmp_path):
    texts = planted()[: COPIES + 10]
    for name in ("a", "b"):
        run_stages(make_builder(tmp_path / name, texts, 2), until="scatter")
    first, second = (digests(tmp_path / name / "files" / "minhash") for name in ("a", "b"))
    assert first == second and len(first) > 28


def test_spared_inputs_lose_nothing(tmp_path):
    texts = planted()[: 2 * COPIES]
    inputs = [Input("a", name="a"), Input("b", name="book", skip=["minhash"])]
    sources = ["a"] * COPIES + ["book"] * COPIES
    builder = make_builder(tmp_path, texts, inputs=inputs, sources=sources)
    assert kept(builder) == list(range(2 * COPIES))


def test_signatures_by_blocks_are_those_of_datatrove(tmp_path):
    ours = MinhashSignatures(tmp_path, MinhashConfig(seed=3))
    for count in (1, 1023, 1024, 1025, 3000):
        shingles = np.random.default_rng(count).integers(0, 1 << 64, (count, 1), np.uint64)
        assert ours.get_signature(shingles) == MinhashDedupSignature.get_signature(ours, shingles)


def test_clusters_against_a_search():
    draw = np.random.default_rng(0)
    for _ in range(20):
        pairs = draw.integers(0, 60, (40, 2)).astype(np.uint64)
        first, documents = clusters(pairs)
        assert documents.tolist() == sorted(set(pairs.ravel().tolist()))
        smallest = {number: number for number in documents.tolist()}
        for _ in documents:
            for a, b in pairs.tolist():
                smallest[a] = smallest[b] = min(smallest[a], smallest[b])
        assert dict(zip(documents.tolist(), first.tolist(), strict=True)) == smallest


def test_a_chain_of_pairs_is_one_cluster():
    chain = np.stack([np.arange(999, 0, -1), np.arange(998, -1, -1)], axis=1).astype(np.uint64)
    first, documents = clusters(chain)
    assert len(documents) == 1000 and not first.any()


def test_no_pairs_are_no_clusters():
    first, documents = clusters(np.empty((0, 2), np.uint64))
    assert len(first) == len(documents) == 0


def test_clusters_are_shown_in_steps_of_powers_of_two(tmp_path):
    notes = {"sizes": {"2": 5, "3": 2, "4": 1, "70": 1}}, {"sizes": {"3": 1, "127": 1}}
    for rank, note in enumerate(notes):
        write_json(tmp_path / "notes" / "exact_clusters" / f"{rank:05d}.json", note)
    found = collect(PrepareJob(), tmp_path, Plan([], [0]))
    assert found["clusters"]["exact"]["sizes"] == {"2": 8, "4": 1, "64": 2}
    report = markdown(found, False)
    assert "| 2 to 3 | 8 |" in report and "| 4 to 7 | 1 |" in report and "| 64 to 127 | 2 |" in report
