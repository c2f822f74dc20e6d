"""Equal documents: the first stays, whatever the tasks."""

import numpy as np
import pytest
from prepared_texts import KEEP_ALL, kept, make_builder, notes, random_texts, run_stages

from flame.data.prepare.dedup import exact
from flame.data.prepare.dedup.drop_list import DropList
from flame.data.prepare.dedup.exact import ExactFind, equal_documents
from flame.data.prepare.dedup.text_hash import text_hash
from flame.data.prepare.job import Input
from flame.data.prepare.options import Dedup, Exact, Minhash


def only_exact(**options):
    return Dedup(Exact(**options), Minhash(enable=False))


def with_copies():
    texts = random_texts(30)
    texts[4] = "Caf\u00e9 au lait, s'il vous pla\u00eet"
    texts[9] = texts[2]
    texts[12] = texts[2].upper().replace(" ", "\n\t ")
    texts[20] = "cafe\u0301 AU lait,\u00a0s'il vous plai\u0302t\n"
    texts[29] = texts[28]
    return texts


@pytest.mark.parametrize("tasks", [1, 2, 7])
def test_the_first_of_equal_documents_stays_for_any_number_of_tasks(tmp_path, tasks):
    builder = make_builder(tmp_path, with_copies(), tasks, dedup=only_exact())
    assert kept(builder) == [row for row in range(30) if row not in (9, 12, 20, 29)]
    run_stages(builder)
    sizes = [note["sizes"] for note in notes(builder, "exact_clusters")]
    assert sizes == [{"2": 2, "3": 1}]
    [pairs] = notes(builder, "exact_pairs")
    assert [(pair["kept"]["id"], pair["dropped"]["id"]) for pair in pairs] == [
        ("texts/2", "texts/9"),  # and not the other copy of the same document
        ("texts/4", "texts/20"),
        ("texts/28", "texts/29"),
    ]
    dropped = [
        note["dropped"].get("copy of another document", {}).get("texts", [0])[0] for note in notes(builder, "exact")
    ]
    assert sum(dropped) == 4


def test_without_normalisation_only_the_same_bytes_are_equal(tmp_path):
    builder = make_builder(tmp_path, with_copies(), 2, dedup=only_exact(normalise=False))
    assert kept(builder) == [row for row in range(30) if row not in (9, 29)]


def test_switched_off_it_keeps_everything(tmp_path):
    assert kept(make_builder(tmp_path, with_copies(), dedup=KEEP_ALL)) == list(range(30))


def test_spared_inputs_lose_nothing_and_cost_others_nothing(tmp_path):
    texts = random_texts(4)
    texts += [texts[0], texts[0]]
    sources = ["a", "a", "a", "a", "book", "a"]
    inputs = [Input("a", name="a"), Input("b", name="book", skip=["exact"])]
    builder = make_builder(tmp_path, texts, sources=sources, inputs=inputs, dedup=only_exact())
    assert kept(builder) == [0, 1, 2, 3, 4]


def test_any_number_of_finders_and_slices_finds_the_same(tmp_path, monkeypatch):
    builder = make_builder(tmp_path, with_copies() * 3, 4, dedup=only_exact())
    run_stages(builder, until="exact-find")
    signatures = builder.folder("exact") / "signatures"
    found = {}
    for tasks, in_memory in [(1, 1 << 24), (3, 1 << 24), (2, 5)]:
        monkeypatch.setattr(exact, "_SIGNATURES_IN_MEMORY", in_memory)
        drops = DropList(tmp_path / f"drops{tasks}")
        for rank in range(tasks):
            ExactFind(signatures, drops, tmp_path / "clusters").run(None, rank, tasks)
        found[tasks] = [sorted(drops.positions(rank)) for rank in range(4)]
    assert found[1] == found[2] == found[3]
    assert sum(map(len, found[1])) == 4 + 60


def test_hashes_that_agree_by_half_are_not_equal():
    halves = np.array([[7, 7, 7, 3, 3], [1, 2, 1, 5, 6], [40, 41, 39, 1, 0]], np.uint64)
    first, dropped = equal_documents(halves)
    assert (first.tolist(), dropped.tolist()) == ([39], [40])


def test_random_hashes_against_a_dictionary():
    draw = np.random.default_rng(0)
    signatures = np.stack([draw.integers(0, 40, 300), draw.integers(0, 5, 300), draw.permutation(300)]).astype(
        np.uint64
    )
    firsts: dict[tuple[int, int], int] = {}
    expected = set()
    for high, low, number in sorted(signatures.T.tolist(), key=lambda row: row[2]):
        first = firsts.setdefault((high, low), number)
        if first != number:
            expected.add((first, number))
    assert set(zip(*(part.tolist() for part in equal_documents(signatures)), strict=True)) == expected


@pytest.mark.parametrize("text", ["", " \n", "A\u2003b", "\ud800", "\u212a", "x" * 100_000])
def test_the_hash_ignores_case_and_space_and_nothing_else(text):
    assert text_hash(text) == text_hash(text.upper() + "\n") == text_hash(" " + text)
    assert text_hash(text) != text_hash(text + "!")
    assert (text_hash("K") == text_hash(text)) == (text == "\u212a")  # the Kelvin sign is a K


def test_tasks_without_documents_do_no_harm(tmp_path):
    assert kept(make_builder(tmp_path, ["one text", "One Text"], 5)) == [0]
