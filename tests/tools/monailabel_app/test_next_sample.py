"""A client that asks for the next image to annotate gets a scan, and no label map."""

import importlib.util

import pytest
from label_server import NEEDS_LABEL, OWN_APP

pytestmark = NEEDS_LABEL


@pytest.mark.parametrize("suffix", ["", ".nii.gz"])
def test_label_maps_are_not_offered_as_scans_to_annotate(suffix, monkeypatch):
    if importlib.util.find_spec("torchvision") is None:
        monkeypatch.syspath_prepend(OWN_APP / "stub")
    spec = importlib.util.spec_from_file_location("label_app_main", OWN_APP / "main.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)

    class Datastore:
        images = [f"sub-01_dseg{suffix}", f"sub-02_T1w{suffix}", f"sub-03_run-1_dseg{suffix}"]

        def get_unlabeled_images(self, label_tag=None, labels=None):
            return self.images

        def get_image_info(self, image):
            return {}

    choose = app.RandomScan()
    assert {choose({"strategy": "random"}, Datastore())["id"] for _ in range(30)} == {f"sub-02_T1w{suffix}"}
    Datastore.images = ["sub-01_dseg"]
    assert choose({"strategy": "random"}, Datastore()) is None
