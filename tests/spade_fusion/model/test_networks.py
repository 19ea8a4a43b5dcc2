"""The networks have the specified sizes and refuse wrong input. The whole path equals a computation by hand."""

import copy

import pytest
import torch
from torch.overrides import TorchFunctionMode

from spade_fusion_bundle.scripts.data.planes import PLANES, from_slices, to_slices
from spade_fusion_bundle.scripts.model.networks import (
    FusionCNN,
    SpadeDiscriminator,
    SpadeFusion,
    SpadeGenerator,
    without_spectral_norm,
)
from spade_fusion_bundle.scripts.shared.weights import load_weights, read_recipe

LABELS = 5


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def blocks_of_labels(*shape, seed=0):
    """Classes 0 to 4 in blocks of 8 voxels, so that they are not lost at a thirty-second of the size."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(1, LABELS, [side // 8 for side in shape[2:]], generator=generator).float()
    coarse = coarse.expand(shape[0], 1, *coarse.shape)
    return torch.nn.functional.interpolate(coarse, size=shape[2:], mode="nearest").to(torch.uint8)


def used(network, passes=3):
    """A generator after some training passes, with weights large enough that labels matter; a fresh one paints all grey."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.add_((0.2 if "bias" not in name else 0.05) * torch.randn(parameter.shape))
        for number in range(passes):
            network.train()(blocks_of_labels(4, 1, 64, 96, seed=number))
    return network.eval()


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return used(SpadeGenerator(LABELS, ngf=2, hidden=8))


@pytest.fixture(scope="module")
def fusion():
    """Three different generators and a fusion CNN that does something."""
    torch.manual_seed(0)
    network = SpadeFusion(LABELS, ngf=2, hidden=4, fusion_channels=4, fusion_layers=3)
    for plane in PLANES:
        generator = used(SpadeGenerator(LABELS, ngf=2, hidden=4))
        network.generators[plane].load_state_dict(without_spectral_norm(generator))
        torch.manual_seed(len(plane))
    with torch.no_grad():
        for parameter in network.fusion.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()


@pytest.fixture(scope="module")
def head():
    """Classes (1, 1, 32, 96, 64), with background around: outside of [8, 32) x [16, 80) x [0, 56)."""
    labels = blocks_of_labels(1, 1, 32, 96, 64, seed=3)
    labels[:, :, :8] = labels[:, :, :, :16] = labels[:, :, :, 80:] = labels[:, :, :, :, 56:] = 0
    return labels


@pytest.fixture(scope="module")
@torch.no_grad()
def volumes(fusion, head):
    return fusion.slice_volumes(head)


@pytest.mark.parametrize(
    ("labels", "ngf", "channels", "millions"), [(8, 64, 3, 92.21), (33, 64, 3, 92.96), (46, 64, 3, 93.35), (8, 16, 3, 10.67)]
)
def test_the_generator_has_the_published_size(labels, ngf, channels, millions):
    with torch.device("meta"):  # spectral norm is slow there, and adds no parameters
        assert round(parameters(SpadeGenerator(labels, ngf, channels, spectral=False)) / 1e6, 2) == millions


def test_spectral_norm_adds_no_parameters():
    with_it, without = (parameters(SpadeGenerator(LABELS, ngf=2, spectral=spectral)) for spectral in (True, False))
    assert with_it == without


@pytest.mark.parametrize(
    ("labels", "ndf", "channels", "millions"),
    [(8, 64, 3, 5.544), (33, 64, 1, 5.591), (33, 16, 3, 0.367)],
)
def test_the_discriminator_has_the_published_size(labels, ndf, channels, millions):
    with torch.device("meta"):
        assert round(parameters(SpadeDiscriminator(labels, ndf, channels)) / 1e6, 3) == millions


def test_the_fusion_cnn_is_small():
    assert round(parameters(FusionCNN()) / 1e6, 3) == 0.114
    assert FusionCNN().radius == 6


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 32), (160, 64)])
@torch.no_grad()
def test_any_multiples_of_32_come_back_in_their_size(generator, size):
    image = generator(blocks_of_labels(2, 1, *size))
    assert image.shape == (2, 1, *size)
    assert image.abs().max() < 1


@pytest.mark.parametrize("size", [(64, 80), (182, 96), (16, 32)])
def test_other_sizes_are_refused_with_a_remedy(generator, size):
    with pytest.raises(ValueError, match=f"slices of {size[0]} x {size[1]}: both sides must be multiples of 32.*Pad them"):
        generator(torch.zeros(1, 1, *size, dtype=torch.uint8))


@torch.no_grad()
def test_sides_are_not_confused(generator):
    """Flipped labels do not give the flipped image."""
    labels = blocks_of_labels(1, 1, 64, 96)
    turned = generator(labels.mT).mT
    assert (turned - generator(labels)).abs().max() > 1e-3


@torch.no_grad()
def test_no_slice_depends_on_another_in_eval_mode(generator):
    labels = torch.cat([blocks_of_labels(1, 1, 64, 96, seed=seed) for seed in range(3)])
    alone = torch.cat([generator(row[None]) for row in labels])
    torch.testing.assert_close(generator(labels), alone, atol=1e-5, rtol=0)
    assert (alone[0] - alone[1]).abs().max() > 1e-2, "labels are ignored"


def test_each_label_reaches_the_image(generator):
    with torch.no_grad():
        images = [generator(torch.full((1, 1, 32, 32), label, dtype=torch.uint8)) for label in range(LABELS)]
    for label, image in enumerate(images[1:], 1):
        assert (image - images[0]).abs().max() > 1e-3, f"class {label} looks like background"


def test_a_discriminator_of_64_pixels_has_the_maps_of_the_specification():
    outputs = SpadeDiscriminator(LABELS, ndf=4)(torch.zeros(2, 1, 64, 96, dtype=torch.uint8), torch.rand(2, 1, 64, 96))
    assert [[feature.shape[2] for feature in scale] for scale in outputs] == [[33, 17, 9, 10, 11], [17, 9, 5, 6, 7]]
    assert [[feature.shape[1] for feature in scale] for scale in outputs] == [[4, 8, 16, 32, 1]] * 2


def test_weights_start_by_xavier_of_gain_0_02_also_under_spectral_norm():
    torch.manual_seed(0)
    checked = 0
    for network in (SpadeGenerator(8, ngf=8), SpadeDiscriminator(8, ndf=16)):
        for name, value in network.named_parameters():
            if name.endswith("bias"):
                assert (value == 0).all(), name
                continue
            fan_in, fan_out = (value.shape[i] * value[0, 0].numel() for i in (1, 0))
            if value.numel() > 3000:
                wanted = 0.02 * (2 / (fan_in + fan_out)) ** 0.5
                assert value.std().item() == pytest.approx(wanted, rel=0.1), name
                checked += name.endswith("parametrizations.weight.original")
    assert checked == 18  # the other sizes are too small to differ


def test_spectral_norm_is_where_the_specification_puts_it():
    suffix = ".parametrizations.weight.original"
    normed = [name.removesuffix(suffix) for name in SpadeGenerator(8, ngf=2).state_dict() if name.endswith(suffix)]
    convs = [f"blocks.{block}.{conv}" for block in range(7) for conv in ("conv1", "conv2")]
    assert set(normed) == {*convs, *(f"blocks.{block}.shortcut_conv" for block in (3, 4, 5, 6))}
    normed = [name.removesuffix(suffix) for name in SpadeDiscriminator(8, ndf=2).state_dict() if name.endswith(suffix)]
    assert set(normed) == {f"scales.{scale}.layers.{layer}" for scale in (0, 1) for layer in (1, 2, 3)}
    assert not any("parametrizations" in name for name in SpadeFusion(8, ngf=2).state_dict())


def test_spectral_norm_is_computed_in_float32_under_autocast():
    """On a GPU, autocast would turn its products into bfloat16."""

    class Products(TorchFunctionMode):
        autocast = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.mv:
                self.autocast.append(torch.is_autocast_enabled("cpu"))
            return function(*args, **kwargs or {})

    discriminator = SpadeDiscriminator(LABELS, ndf=2).train()
    with Products() as products, torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = discriminator(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32))
    assert outputs[0][0].dtype == torch.bfloat16
    assert products.autocast and not any(products.autocast)


@torch.no_grad()
def test_images_are_equal_without_spectral_norm(generator):
    plain = SpadeGenerator(LABELS, ngf=2, hidden=8, spectral=False)
    before = copy.deepcopy(generator.state_dict())
    plain.load_state_dict(without_spectral_norm(generator))
    labels = blocks_of_labels(2, 1, 64, 96, seed=9)
    torch.testing.assert_close(plain.eval()(labels), generator(labels), atol=1e-6, rtol=0)
    # the generator itself is unchanged, because its training continues
    after = generator.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[key], value) for key, value in before.items())


@torch.no_grad()
def test_a_generator_in_training_is_taken_as_it_would_be_in_eval_mode(generator):
    """Reading a spectrally normed weight in training mode moves its estimate."""
    twin = copy.deepcopy(generator).train()
    states = without_spectral_norm(twin), without_spectral_norm(generator)
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    assert twin.training


@torch.no_grad()
def test_the_path_through_all_is_the_three_planes_by_hand(fusion, head, volumes):
    by_hand = []
    for plane in ("axial", "coronal", "sagittal"):
        images = fusion.generators[plane](to_slices(head, plane))
        by_hand.append((from_slices(images, plane, 1) + 1) / 2 * (head > 0))
    torch.testing.assert_close(volumes, torch.cat(by_hand, dim=1), atol=1e-5, rtol=0)
    for i in range(3):
        assert (by_hand[i] - by_hand[i - 1]).abs().mean() > 1e-3, "the planes do not differ"
    x = volumes
    for number, conv in enumerate(fusion.fusion.convs):
        x = conv(x.relu() if number else x)
    by_hand = (x + volumes.mean(dim=1, keepdim=True)).clamp(0, 1) * (head > 0)
    torch.testing.assert_close(fusion(head), by_hand, atol=1e-5, rtol=0)


@torch.no_grad()
def test_background_is_exactly_zero_and_the_head_is_not(fusion, head, volumes):
    image = fusion(head)
    assert image.shape == head.shape and image.dtype == torch.float32
    assert (image[head == 0] == 0).all()
    assert (volumes[(head == 0).expand(1, 3, -1, -1, -1)] == 0).all()
    assert (image[head > 0] > 0).float().mean() > 0.9
    assert 0 <= image.min() and image.max() <= 1


@torch.no_grad()
def test_the_volume_does_not_depend_on_how_many_slices_pass_at_once(fusion, head, volumes):
    generator = fusion.generators["coronal"]
    assert fusion.slices_per_batch == 12
    for slices_per_batch in (7, 1000):
        volume = generator.volumes(head, "coronal", slices_per_batch)
        torch.testing.assert_close(volume, volumes[:, 1:2], atol=1e-5, rtol=0)


@torch.no_grad()
def test_classes_may_be_of_any_number_type(fusion, head):
    labels = head[:, :, :, 16:48, :32]  # of uint8
    image = fusion(labels)
    for dtype in (torch.int16, torch.int64, torch.float32):
        assert torch.equal(fusion(labels.to(dtype)), image), dtype


@torch.no_grad()
def test_volumes_of_a_batch_are_as_each_alone(fusion):
    one, two = (blocks_of_labels(1, 1, 32, 32, 32, seed=seed) for seed in (7, 8))
    both = fusion(torch.cat([one, two]))
    torch.testing.assert_close(both, torch.cat([fusion(one), fusion(two)]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_plane_is_made_by_its_own_generator_along_its_own_axis(fusion):
    """A cube of labels fits any axis, so the volume of each generator is compared along its own axis."""
    labels = blocks_of_labels(1, 1, 32, 32, 32, seed=5)
    volumes = fusion.slice_volumes(labels)
    for index, plane in enumerate(PLANES):
        for other in PLANES:
            volume = fusion.generators[plane].volumes(labels, other, 12)
            difference = (volumes[:, index : index + 1] - volume).abs().max()
            assert (difference < 1e-5) == (other == plane), f"{plane} generator, cut as {other}"


@torch.no_grad()
def test_a_flipped_head_is_another_head(fusion, head):
    labels = head[:, :, :, 16:48, :32]
    image = fusion(labels)
    for axis in (2, 3, 4):
        assert (fusion(labels.flip(axis)).flip(axis) - image).abs().max() > 1e-3


def test_classes_beyond_the_last_are_refused(fusion, head):
    with pytest.raises(ValueError, match="classes from 0 to 5: this network knows 0 to 4. Map label values to classes"):
        fusion(torch.where(head == 4, 5, head))
    with pytest.raises(ValueError, match="classes from -1 to 4"):
        fusion(head.int() - (head == 0).int())


def test_a_volume_with_an_odd_side_is_refused_before_anything_is_drawn(fusion):
    with pytest.raises(ValueError, match="slices of 32 x 48: both sides must be multiples of 32"):
        fusion(torch.ones(1, 1, 32, 48, 64, dtype=torch.uint8))


@torch.no_grad()
def test_a_map_of_background_gives_an_empty_volume(fusion):
    assert (fusion(torch.zeros(1, 1, 32, 64, 96, dtype=torch.uint8)) == 0).all()


@torch.no_grad()
def test_the_fusion_starts_as_the_mean():
    volumes = torch.rand(2, 3, 8, 12, 10)
    torch.testing.assert_close(FusionCNN()(volumes), volumes.mean(dim=1, keepdim=True), atol=0, rtol=0)


@torch.no_grad()
def test_each_voxel_sees_as_far_as_the_radius_and_no_farther():
    torch.manual_seed(0)
    network = FusionCNN(channels=4, layers=3)
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, 0.01, 0.2)  # no ReLU is shut
    volumes = torch.rand(1, 3, 15, 17, 19)
    changed = volumes.clone()
    changed[0, 0, 7, 8, 9] += 1
    reached = (network(changed) != network(volumes))[0, 0].nonzero()
    assert network.radius == 3
    assert (reached.amin(0).tolist(), reached.amax(0).tolist()) == ([4, 5, 6], [10, 11, 12])


@torch.no_grad()
def test_patches_with_a_halo_of_the_radius_give_the_whole_volume(fusion):
    volumes = torch.rand(1, 3, 20, 26, 32)
    whole, radius = fusion.fusion(volumes), fusion.fusion.radius
    size = 10
    for corner in ((0, 0, 0), (7, 12, 20), (10, 16, 22)):
        halo = [slice(max(0, start - radius), start + size + radius) for start in corner]
        inside = [slice(start - cut.start, start - cut.start + size) for start, cut in zip(corner, halo)]
        patch = fusion.fusion(volumes[(..., *halo)])[(..., *inside)]
        wanted = whole[(..., *(slice(start, start + size) for start in corner))]
        torch.testing.assert_close(patch, wanted, atol=1e-6, rtol=0)


@torch.no_grad()
def test_its_recipe_travels_in_the_state_and_makes_the_network_again(fusion, head, tmp_path):
    fusion.recipe = {
        "labels": {"name": "Größe"},
        "network": {"num_labels": LABELS, "ngf": 2, "hidden": 4, "fusion_channels": 4, "fusion_layers": 3},
    }
    path = tmp_path / "model.pt"
    torch.save(fusion.state_dict(), path)
    assert all(isinstance(value, torch.Tensor) for value in torch.load(path, weights_only=True).values())
    other = load_weights(SpadeFusion(**read_recipe(path)["network"]), path).eval()
    assert other.recipe == fusion.recipe
    assert torch.equal(other(head[:, :, :, 16:48, :32]), fusion(head[:, :, :, 16:48, :32]))


def test_weights_of_another_size_are_refused_with_the_keys(fusion, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(fusion.state_dict(), path)
    with pytest.raises(ValueError, match=r"weights of another architecture.*stem.weight \(32, 5, 3, 3\) instead of \(64, 5, 3"):
        load_weights(SpadeFusion(LABELS, ngf=4, hidden=4, fusion_channels=4, fusion_layers=3), path)
    with pytest.raises(FileNotFoundError, match="model.pt: no such weights file. Make it with: a command"):
        load_weights(fusion, tmp_path / "other" / "model.pt", "a command")
