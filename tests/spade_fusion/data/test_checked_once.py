"""Sound pairs are checked once, and again only where something else could be wrong."""

import json

import numpy as np
import pytest
from tiny_pairs import (
    LABELS,
    MAP,
    MAP_5,
    SCAN_5,
    TABLES,
    pairs,
    read,
    refusal,
    save,
    with_voxel,
)

from spade_fusion_bundle.scripts.data import image_checks
from spade_fusion_bundle.scripts.data.scans_and_maps import read_dataset
from spade_fusion_bundle.scripts.shared.label_table import LabelTable


def test_sound_pairs_are_read_once(few, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "checked.json"
    path = save(few / MAP_5, with_voxel(MAP, 999))
    whole, seen = image_checks.nifti.read_whole, []
    monkeypatch.setattr(
        image_checks.nifti, "read_whole", lambda path, **options: (seen.append(path), whole(path, **options))[1]
    )
    assert "999" in refusal(few, cache_file=cache)
    assert len(seen) == 6
    for _ in range(2):
        seen.clear()
        assert "999" in refusal(few, cache_file=cache)
        assert set(seen) == {str(path), str(few / SCAN_5)}
    save(path, MAP)
    read(few, cache_file=cache)
    seen.clear()
    read(few, cache_file=cache)
    assert not seen
    assert [file.name for file in cache.parent.iterdir()] == ["checked.json"]
    save(path, with_voxel(MAP, 998))  # of a sound pair
    assert f"{path}: label values 998" in refusal(few, cache_file=cache)


def test_partial_maps_are_accepted_on_request_only_in_spite_of_the_cache(few, tmp_path):
    cache = tmp_path / "cache" / "checked.json"
    save(few / MAP_5, np.where(MAP < 4, MAP, 0))
    assert len(pairs(read(few, cache_file=cache, partial_maps=True))) == 3
    message = refusal(few, cache_file=cache)
    assert "mean cerebral cortex, cerebral white matter in the label table 'freesurfer'" in message
    assert "at least 9 of its 18 brain structures" in message and "add --partial_maps True" in message


def test_names_are_checked_again_in_spite_of_the_cache(few, tmp_path):
    cache = tmp_path / "cache" / "checked.json"
    read(few, cache_file=cache)
    (few / LABELS / "dseg.tsv").write_text("index\tname\n17\tLeft-Amygdala\n")
    message = refusal(few, cache_file=cache)
    assert "(2 problems)" in message and "17 is 'Left-Amygdala' there and 'left hippocampus' in the table" in message


def test_another_table_is_checked_in_spite_of_the_cache(few, tmp_path):
    read(few, cache_file=tmp_path / "checked.json")
    with pytest.raises(ValueError, match="are not in the label table 'demo'"):
        read_dataset(few, LabelTable.from_file(TABLES, "demo"), cache_file=tmp_path / "checked.json")


def test_a_damaged_cache_only_costs_time(few, tmp_path):
    cache = tmp_path / "checked.json"
    cache.write_text('{"half')
    read(few, cache_file=cache)
    assert len(json.loads(cache.read_text())) == 3
