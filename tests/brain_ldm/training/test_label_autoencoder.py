"""Stage one learns label maps: classes in, logits out."""

from types import SimpleNamespace

import pytest
import tiny
import tiny_labels
import torch
from monai.bundle import ConfigParser
from tiny_labels import TABLE

from brain_ldm_bundle.scripts.data.label_maps import recipe_of_maps, refuse_other_maps, refuse_scan_cache
from brain_ldm_bundle.scripts.model.networks import Autoencoder
from brain_ldm_bundle.scripts.model.sampler import Reconstructor
from brain_ldm_bundle.scripts.training.label_autoencoder import label_autoencoder_step

SIZES = {"channels": [8, 8], "num_res_blocks": 1, "norm_num_groups": 4}


def network(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(**SIZES, num_classes=TABLE.num_classes)


def classes() -> torch.Tensor:
    return torch.from_numpy(TABLE.classes(tiny_labels.head(), "head"))[None, None]  # (1, 1, 20, 28, 20) of uint8


def test_the_weights_of_scans_have_the_same_names_and_shapes_as_before():
    scans, maps = Autoencoder(**SIZES), network()
    assert scans.state_dict().keys() == maps.state_dict().keys() and scans.num_classes == 0
    image = torch.rand(1, 1, 8, 12, 16)
    assert scans.reconstruct(image).shape == image.shape


def test_classes_go_in_and_logits_come_out():
    autoencoder = network().eval()
    logits, mu, _ = autoencoder(classes())
    assert logits.shape == (1, TABLE.num_classes, 20, 28, 20) and mu.shape == (1, 3, 10, 14, 10)
    by_hand = (classes() == torch.arange(TABLE.num_classes)[None, :, None, None, None]).float()
    super_mu, _ = super(Autoencoder, autoencoder).encode(by_hand)
    assert torch.equal(mu, super_mu)
    reconstruction = Reconstructor()(classes(), autoencoder)
    assert reconstruction.dtype == torch.uint8 and torch.equal(
        reconstruction, autoencoder.reconstruct(classes()).argmax(1, True)
    )


def test_a_step_lowers_the_loss_of_every_part_and_leaves_the_discriminator_alone():
    autoencoder = network()
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=5e-3)
    state = SimpleNamespace(device=torch.device("cpu"), g_network=autoencoder, g_optimizer=optimizer, epoch=1)
    engine = SimpleNamespace(state=state)  # it has no discriminator
    batch = {"image": classes()}
    steps = [label_autoencoder_step(engine, batch, kl_weight=1e-8, grad_clip=1.0, amp=False)[0] for _ in range(15)]
    assert steps[-1]["overlap"] < 0.8 * steps[0]["overlap"]
    assert steps[0]["loss"] == pytest.approx(steps[0]["overlap"] + 1e-8 * steps[0]["kl"])


def saved(path, **recipe):
    """Weights with a recipe, in a file."""
    autoencoder = Autoencoder(**SIZES)
    autoencoder.recipe = recipe
    torch.save(autoencoder.state_dict(), path)
    return path


def test_weights_of_scans_other_classes_or_label_maps_are_refused(tmp_path):
    sums = recipe_of_maps(TABLE, tiny_labels.TABLES)
    maps, scans, old = (
        saved(tmp_path / "maps.pt", **sums),
        saved(tmp_path / "scans.pt", labels=None),
        saved(tmp_path / "old.pt"),
    )
    other = tiny_labels.chosen_table(tiny_labels.TABLES, "freesurfer")
    for path, table in ((maps, TABLE), (scans, None), (old, None), (tmp_path / "missing.pt", TABLE), (None, TABLE)):
        refuse_other_maps(path, table)
    for path in (scans, old):
        with pytest.raises(ValueError, match=rf"{path.name}: these weights are of scans, but this training is of label maps"):
            refuse_other_maps(path, TABLE)
    with pytest.raises(ValueError, match=r"maps.pt: these weights are of label maps \(demo\), not of scans"):
        refuse_other_maps(maps, None)
    with pytest.raises(ValueError, match="the table 'demo', whose classes are not those of 'freesurfer'"):
        refuse_other_maps(maps, other)


@pytest.mark.parametrize("sizes", ["demo", "demo_2mm", "multi_gpu"])
def test_the_overlay_works_with_the_overlays_of_sizes(sizes, bundle, tmp_path):
    """Blocks of a head are mirrored with their sides, and stay classes."""
    files = [f"configs/{name}.json" for name in ("train", sizes, "labels")]
    parser = ConfigParser()
    parser.read_config(files)
    parser.update({"label_table": "demo", "spacing_mm": tiny.SPACING_MM, "use_device": "cpu"})
    item = {"image": tiny_labels.write_dataset(tmp_path, 1, 1) / "derivatives/blobs/sub-0001/anat/sub-0001_dseg.nii.gz"}
    block = torch.as_tensor(parser.get_parsed_content("autoencoder_stage#preprocessing")(item)["image"])
    assert block.dtype == torch.uint8 and block.shape[1:] == (20, 28, 20)
    parser.get_parsed_content("checks#0")  # of all settings
    step = parser.get_parsed_content("autoencoder_stage#step")
    assert step.func.__name__ == "label_autoencoder_step"
    assert parser.get_parsed_content("autoencoder_sizes")["num_classes"] == TABLE.num_classes
    assert parser.get_parsed_content("models_dir").endswith("models/labels")


def test_label_maps_are_not_stored_as_grey_values():
    refuse_scan_cache(None, TABLE)
    refuse_scan_cache("uint8", None)
    with pytest.raises(ValueError, match="scan_cache is 'uint8', which stores grey values"):
        refuse_scan_cache("uint8", TABLE)
