"""Names in a dseg.tsv agree with the label table, give values another meaning, or are refused."""

import numpy as np
import pytest
from conftest import ROOT

from brain_ldm_bundle.scripts.shared.label_names import meaning, translated
from spade_fusion_bundle.scripts.shared.label_table import LabelTable

TABLES = ROOT / "spade_fusion_bundle" / "configs" / "labels.json"
FREESURFER = LabelTable.from_file(TABLES, "freesurfer")
DEMO = LabelTable.from_file(TABLES, "demo")
# FreeSurferColorLUT.txt, as in the tables that fMRIPrep writes; then SynthSeg's names.
FREESURFER_NAMES = {
    **{0: "Unknown", 2: "Left-Cerebral-White-Matter", 3: "Left-Cerebral-Cortex", 4: "Left-Lateral-Ventricle"},
    5: "Left-Inf-Lat-Vent",
    **{7: "Left-Cerebellum-White-Matter", 8: "Left-Cerebellum-Cortex", 10: "Left-Thalamus", 11: "Left-Caudate"},
    12: "Left-Putamen",
    **{13: "Left-Pallidum", 14: "3rd-Ventricle", 15: "4th-Ventricle", 16: "Brain-Stem", 17: "Left-Hippocampus"},
    18: "Left-Amygdala",
    **{24: "CSF", 26: "Left-Accumbens-area", 27: "Left-Substancia-Nigra", 28: "Left-VentralDC", 30: "Left-vessel"},
    **{31: "Left-choroid-plexus", 49: "Right-Thalamus-Proper", 63: "Right-choroid-plexus", 72: "5th-Ventricle"},
    **{77: "WM-hypointensities", 78: "Left-WM-hypointensities", 80: "non-WM-hypointensities", 85: "Optic-Chiasm"},
    **{251: "CC_Posterior", 253: "CC_Central", 1000: "ctx-lh-unknown", 1004: "ctx-lh-corpuscallosum", 2035: "ctx-rh-insula"},
    **{3002: "wm-lh-caudalanteriorcingulate", 5002: "Right-UnsegmentedWhiteMatter", 11101: "ctx_lh_G_and_S_frontomargin"},
}
SYNTHSEG_NAMES = {
    **{2: "left cerebral white matter", 5: "left inferior lateral ventricle", 7: "left cerebellum white matter"},
    14: "3rd ventricle",
    **{16: "brain-stem", 24: "csf", 26: "left accumbens area", 28: "left ventral DC", 60: "right ventral DC"},
}


def read(table, names, values=None):
    values = np.array(list(names) if values is None else values)
    return translated(values, names, "dseg.tsv", table.value_names(), table.name).tolist()


@pytest.mark.parametrize("names", [FREESURFER_NAMES, SYNTHSEG_NAMES], ids=["FreeSurfer", "SynthSeg"])
def test_names_of_known_tools_agree_with_the_table(names, recwarn):
    assert read(FREESURFER, names) == list(names) and not recwarn


@pytest.mark.parametrize("table", [FREESURFER, DEMO], ids=["freesurfer", "demo"])
def test_the_names_that_the_bundle_writes_agree_with_the_table(table, recwarn):
    assert read(table, table.value_names()) == list(table.value_names()) and not recwarn


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({0: "background", 2: "edema", 4: "enhancing tumor"}, r"2 is 'edema' there and 'left cerebral white matter' in"),
        ({2: "Left-Caudate"}, "2 is 'Left-Caudate' there"),  # 3 has no name, so the table may be another map's
        ({2: "Left-Caudate", 3: "lesion core of patient"}, "2 is 'Left-Caudate'"),
        ({2: "Right-Cerebral-White-Matter"}, "2 is 'Right-Cerebral-White-Matter'"),
        ({1: "GM", 2: "WM", 3: "CSF"}, r"3 is 'CSF' there and 'left cerebral cortex' in the table"),
        ({0: "Left-Caudate"}, "0 is 'Left-Caudate' there and 'background'"),
    ],
)
def test_names_that_contradict_the_table_are_refused(names, message):
    with pytest.raises(ValueError, match=f"dseg.tsv contradicts the label table 'freesurfer': .*{message}"):
        read(FREESURFER, names, [0, 2, 3, 4])


def test_a_map_with_a_known_name_for_every_value_is_read_by_the_names():
    names = {1: "Left-Cerebral-White-Matter", 2: "Left-Cerebral-Cortex", 3: "Right-Caudate", 4: "csf", 16: "Brain-Stem"}
    with pytest.warns(UserWarning, match=r"dseg.tsv: .*1 as left cerebral white matter \(2\), 2 as left cerebral cortex \(3\)"):
        assert read(FREESURFER, names, [0, 1, 2, 3, 4, 16]) == [0, 2, 3, 50, 24, 16]


def test_sides_that_a_table_exchanges_are_exchanged():
    names = {2: "Right-Cerebral-White-Matter", 41: "Left-Cerebral-White-Matter"}
    with pytest.warns(UserWarning, match="41 as left"):
        assert read(FREESURFER, names, [0, 2, 41, 41]) == [0, 41, 2, 2]


def test_a_name_of_several_structures_or_sides_is_no_translation():
    for name in ("Hippocampus", "White matter", "Ventricle"):
        assert read(FREESURFER, {1: name, 2: "WM"}, [1, 2]) == [1, 2]


def test_names_of_absent_values_do_not_matter():
    assert read(FREESURFER, {2: "Left-Cerebral-White-Matter", 4: "edema"}, [0, 2, 3]) == [0, 2, 3]


def test_a_meaning_has_a_side_and_words():
    assert meaning("ctx-lh-insula") == ("left", {"cerebral", "cortex", "insula"})
    assert meaning("Right-Inf-Lat-Vent") == ("right", {"inferior", "lateral", "ventricle"})
