"""Bad rows on their way through the loader: counted and skipped, or an error; never a hang."""

import json
from itertools import islice

import pytest
from data_stand_ins import Data, Source

from flame.errors import DataError


def good_and_bad(folder, good, bad):
    rows = [json.dumps({"text": f"good {i}"}) for i in range(good)] + ["{oops"] * bad
    (folder / "a.jsonl").write_text("\n".join(rows) + "\n")
    return Source(str(folder / "a.jsonl"))


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_skipped_and_counted_or_errors_by_policy(make_loader, tmp_path, workers, caplog):
    source = good_and_bad(tmp_path, 20, 3)
    loader = make_loader(source, workers=workers, repeat=False)
    list(loader)
    loader.close()
    assert loader.skipped == {"not JSON": 3}
    assert "rows skipped or cut: 3 not JSON" in caplog.text
    with pytest.raises(DataError, match=r"a.jsonl, row 2[123]: not JSON .* set data.on_bad_row = \"skip\""):
        list(make_loader(source, workers=workers, repeat=False, data=Data(on_bad_row="error")))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("repeat", [False, True])
def test_nothing_but_bad_rows_is_an_error_and_not_a_hang(make_loader, tmp_path, workers, repeat):
    with pytest.raises(DataError, match="in a row are unusable|no usable documents"):
        list(make_loader(good_and_bad(tmp_path, 0, 9), workers=workers, repeat=repeat))


def test_a_line_of_50_megabytes_is_cut_and_counted(make_loader, tmp_path):
    with open(tmp_path / "a.jsonl", "w") as file:
        file.write('{"text": "small"}\n{"text": "' + "many words " * 4_800_000 + '"}\n{"text": "small"}\n')
    data = Data(max_document_bytes=1 << 22, lanes_per_row=1, shuffle=False)
    loader = make_loader(Source(str(tmp_path / "a.jsonl")), data=data, global_batch_size=1, local_batch_size=1)
    list(islice(loader, 10))
    assert loader.skipped["too long, cut into pieces"] >= 1
