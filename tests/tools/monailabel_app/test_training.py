"""MONAI Label trains the SPADE bundle from its datastore."""

import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from label_server import NEEDS_LABEL, infer, train
from tiny_bundles import SPADE

pytestmark = NEEDS_LABEL


def test_the_spade_bundle_trains_from_the_datastore(client):
    """Afterwards the new weights are served, without a restart."""
    before, _ = infer(client, SPADE, "mapLAS")
    models = client.bundles / SPADE / "models"
    status, details = train(client, max_epochs=1)
    assert status == "DONE", details
    assert {"spade_axial.pt", "spade_coronal.pt", "spade_sagittal.pt", "model.pt"} <= {path.name for path in models.iterdir()}
    after, _ = infer(client, SPADE, "mapLAS")
    assert np.abs(after.get_fdata() - before.get_fdata()).max() > 0.01
    assert after.get_fdata().std() > 0.01
    if not client.own:  # it would continue the first training, which had other data
        assert train(client, max_epochs=1, val_split=0.4)[0] == "ERROR"
        assert "was made by a run with other settings (data: " in client.log.read_text()


def test_a_second_training_may_have_other_data_and_sizes_in_our_app(client):
    if not client.own:
        pytest.skip("in the sample app it would be refused, see the test before")
    elsewhere = str(client.bundles.parent / "elsewhere")  # no client says where files go
    own = client.bundles / SPADE / "models" / "resume" / "fusion.pt"  # as a training on the command line left it
    own.parent.mkdir()
    own.write_text("of 40 hours")
    settings = {"val_split": -1, "fusion_channels": 3, "pretrained": False, "run_id": "", "models_dir": elsewhere}
    status, details = train(client, max_epochs=1, **settings)
    assert status == "DONE" and not Path(elsewhere).exists(), details
    urllib.request.urlopen(urllib.request.Request(f"{client.get_server_url()}/reload", method="POST"))
    assert infer(client, SPADE, "mapLAS")[0].get_fdata().std() > 0.01
    served = (client.bundles / SPADE / "models" / "model.pt").read_bytes()
    status, details = train(client, max_epochs=1, label_table="frisurfer")
    assert status == "ERROR" and "no label table 'frisurfer'" in client.log.read_text()
    assert (client.bundles / SPADE / "models" / "model.pt").read_bytes() == served
    assert own.read_text() == "of 40 hours"
