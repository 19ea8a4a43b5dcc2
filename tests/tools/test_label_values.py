"""Label values have the meaning of FreeSurferColorLUT.txt, and the tools share one table."""

from measurement.label_values import read_label_values, read_volume_labels


def test_ranges_and_both_sides_belong_to_their_class():
    values = read_label_values()
    assert values["lateral ventricle"] == {4, 5, 43, 44}
    assert {3, 42, 1000, 1035, 2000, 12175} <= values["cerebral cortex"] and 1036 not in values["cerebral cortex"]
    assert read_label_values("demo")["lateral ventricle"] == {6, 7}


def test_volumes_sum_what_freesurfer_names():
    """30 and 62 are vessels in FreeSurferColorLUT.txt; one of four tables called them lesions of the white matter."""
    sums = read_volume_labels()
    third, csf, vessels, plexus = {14}, {24}, {30, 62}, {31, 63}
    assert sums["ventricles_ml"] == {4, 5, 43, 44}
    assert not sums["brain_ml"] & (sums["ventricles_ml"] | third | csf | vessels | plexus)
    assert {2, 3, 16, 77, 251, 1001} <= sums["brain_ml"]
    assert third | csf | vessels | plexus | sums["brain_ml"] | sums["ventricles_ml"] <= sums["icv_ml"]
    assert not {0, 515, 530} & sums["icv_ml"]
