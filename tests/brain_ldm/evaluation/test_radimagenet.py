from functools import cache

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brain_ldm.model.test_medicalnet import BLOCKS, slow_resnet, with_statistics
from monai.networks.nets.resnet import ResNetFeatures

from brain_ldm_bundle.scripts.evaluation import radimagenet
from brain_ldm_bundle.scripts.evaluation.radimagenet import RadImageNet
from brain_ldm_bundle.scripts.shared import mni_box

MM = 2.0
SIZE = (8, 12, 10)
HEAD = (slice(2, 6), slice(3, 10), slice(0, 5))  # 4, 7 and 5 slices
FILES = {"keras": "RadImageNet-ResNet50_notop.pth", "pytorch": "ResNet50.pt"}
NUMBERS = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


@cache
def radimagenet_state(kind):
    """Random weights under the names of torchvision and MONAI; Keras' convolutions have biases."""
    torch.manual_seed(0)
    state = ResNetFeatures("resnet50", pretrained=False, spatial_dims=2, in_channels=3).state_dict()
    if kind == "keras":
        convolutions = {key: tensor for key, tensor in state.items() if tensor.ndim == 4}
        state |= {key.replace("weight", "bias"): torch.zeros(len(tensor)) for key, tensor in convolutions.items()}
    return with_statistics(state)


def radimagenet_file(path, kind, without=()):
    """As the two files that are around store them; the real ones cannot be fetched by a test."""
    state = {key: tensor for key, tensor in radimagenet_state(kind).items() if not key.startswith(without)}
    if kind == "pytorch":
        parts = [(key.split(".", 1), tensor) for key, tensor in state.items()]
        state = {f"backbone.{NUMBERS[part]}.{rest}": tensor for (part, rest), tensor in parts}
    torch.save(state, path)
    return path


def load(folder, kind):
    return RadImageNet(radimagenet_file(folder / FILES[kind], kind), MM).double().requires_grad_(False)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return load(tmp_path_factory.mktemp("radimagenet"), "pytorch")


def head(seed=0):
    """A head of noise in darkness: (1, 1, *SIZE), different on every side."""
    volume = torch.zeros(1, 1, *SIZE, dtype=torch.float64)
    texture = torch.rand(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    volume[0, 0][HEAD] = 0.5 + 0.5 * texture[HEAD]
    return volume


def images_of(network, volume):
    """What the network is shown: batches of (n, 3, H, W)."""
    batches = []
    hook = network.network.conv1.register_forward_hook(lambda _, inputs, __: batches.append(inputs[0].clone()))
    network(volume)
    hook.remove()
    return batches


@pytest.mark.parametrize("kind", FILES)
def test_features_are_those_of_keras_or_of_torchvision(kind, tmp_path):
    """The two files' networks differ in biases, in where a block has its stride and in epsilon, and so do their inputs."""
    array = head()[0, 0].numpy()
    sagittal = [array[i, ::-1, ::-1].T for i in range(2, 6)]
    coronal = [array[:, j, ::-1].T for j in range(3, 10)]
    axial = [array[:, ::-1, k].T for k in range(5)]
    expected = []
    for slices in (sagittal, coronal, axial):
        x = F.interpolate(torch.from_numpy(np.stack(slices))[:, None], scale_factor=MM, mode="bilinear")
        if kind == "keras":
            x = torch.cat([x - 0.406, x - 0.456, x - 0.485], dim=1)
        else:
            x = torch.cat([(255 * x - 127.5) * 2 / 255] * 3, dim=1)
        variant = {"stride_in": 0, "epsilon": 1.001e-5} if kind == "keras" else {}
        expected.append(slow_resnet(x, radimagenet_state(kind), BLOCKS[50], **variant).mean(dim=(0, 2, 3)))
    torch.testing.assert_close(load(tmp_path, kind)(head())[0], torch.cat(expected), rtol=1e-10, atol=1e-10)


def test_slices_lie_as_on_a_radiologists_screen(network):
    """Top or front above, the patient's right (in sagittal slices the front) on the left."""
    assert nib.aff2axcodes(mni_box.affine(MM)) == ("L", "A", "S")
    marked = head()
    marked[0, 0, 2, 8, 4] += 1  # 2 voxels from the right, 3 from the front, 5 from the top
    places = []
    for before, after in zip(images_of(network, head()), images_of(network, marked), strict=True):
        changed = torch.nonzero((after - before).abs().amax(dim=(0, 1))).double()
        places.append(changed.mean(dim=0).tolist())  # row, column
    right, front, top = (MM * voxels + 0.5 for voxels in (2, 3, 5))
    assert places == [pytest.approx(place) for place in ([top, front], [top, right], [front, right])]


def test_pixels_are_one_millimetre_and_only_slices_through_the_head_count(network):
    shapes = [tuple(batch.shape[2:]) for batch in images_of(network, head())]
    assert dict.fromkeys(shapes) == dict.fromkeys([(20, 24), (20, 16), (24, 16)])  # sagittal, coronal, axial
    counts = {shape: 0 for shape in shapes}
    for batch in images_of(network, head()):
        counts[tuple(batch.shape[2:])] += len(batch)
    assert list(counts.values()) == [4, 7, 5]


def test_only_the_slices_along_an_axis_are_blind_to_a_flip_of_it(network):
    features = network(head()).view(3, 2048)  # of sagittal, coronal and axial slices
    for axis in range(3):
        flipped = network(head().flip(2 + axis)).view(3, 2048)
        for plane in range(3):
            assert torch.allclose(flipped[plane], features[plane], rtol=1e-8) == (plane == axis)


def test_memory_holds_few_slices_and_their_number_changes_nothing(network, monkeypatch):
    features = network(head())
    monkeypatch.setattr(radimagenet, "SLICES_AT_ONCE", 3)
    assert [len(batch) for batch in images_of(network, head())] == [3, 1, 3, 3, 1, 3, 2]
    torch.testing.assert_close(network(head()), features)


def test_volumes_of_a_batch_do_not_meet(network):
    both = network(torch.cat([head(0), head(1)]))
    torch.testing.assert_close(both, torch.cat([network(head(0)), network(head(1))]))


def test_a_blur_is_seen(network):
    sharp = network(torch.cat([head(seed) for seed in range(3)]))
    blurred = network(torch.cat([F.avg_pool3d(head(seed), 3, stride=1, padding=1) for seed in range(3)]))
    assert torch.dist(blurred.mean(0), sharp.mean(0)) > 2 * torch.pdist(sharp).max()


@pytest.mark.parametrize("kind", FILES)
def test_a_file_without_all_layers_is_refused(kind, tmp_path):
    path = radimagenet_file(tmp_path / FILES[kind], kind, without="layer4")
    with pytest.raises(ValueError, match=f"{FILES[kind]}: weights of another architecture.*keys missing"):
        RadImageNet(path, MM)
