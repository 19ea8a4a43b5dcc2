import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import GaussianSmooth
from tiny import SPACING_MM, write_dataset

from brain_ldm_bundle.scripts.data.bids import find_volumes
from brain_ldm_bundle.scripts.evaluation.compared_sets import (
    Blurred,
    Remembered,
    Repeated,
    Volumes,
    find_samples,
    halves,
    refuse_few,
)

SHAPE = (6, 9, 7)


def volumes(**images):
    items = [{"image": name, "participant_id": f"sub-{name}"} for name in images]
    return Volumes(items, lambda item: {"image": images[item["image"]]})


def generated(folder, number=4, peak=1.0):
    """Volumes as generation writes them."""
    write_dataset(folder, training=number, validation=0)
    for path in folder.glob("sub-*/anat/*.nii.gz"):
        image = nib.load(path)
        voxels = image.get_fdata(dtype=np.float32)
        nib.save(nib.Nifti1Image(voxels / voxels.max() * np.float32(peak), image.affine), path)
    return folder


def path_of(folder, number):
    return folder / f"sub-000{number}" / "anat" / f"sub-000{number}_T1w.nii.gz"


def test_volumes_come_in_steps_of_one_in_255():
    image = torch.linspace(0, 1, 6 * 9 * 7).reshape(1, *SHAPE)
    found = volumes(a=image)[0]
    assert found.shape == (1, *SHAPE) and found.dtype == torch.float32
    assert torch.allclose(found * 255, (found * 255).round()) and (found - image).abs().max() <= 0.5 / 255 + 1e-6
    with pytest.raises(ValueError, match="faint: is constant"):  # what 8 bits cannot hold is not there
        volumes(faint=0.001 * image)[0]


def test_a_constant_volume_is_refused_by_file():
    with pytest.raises(ValueError, match=r"constant: is constant \(0.25\)"):
        volumes(constant=torch.full((1, *SHAPE), 0.25))[0]


def test_a_volume_that_a_blur_makes_constant_is_refused_by_file():
    """Such as a scan with one voxel of a huge intensity. The message spoke of an empty sequence, and of no file."""
    spike = torch.zeros(1, 33, 35, 37)
    spike[0, 16, 17, 18] = 1
    with pytest.raises(ValueError, match=r"spike: is constant \(0\) in 8 bits, as it is or blurred"):
        Blurred(volumes(spike=spike), spacing_mm=1.0, number=1, seed=0)[0]


def test_volumes_read_last_are_remembered_as_they_were_and_no_more_than_allowed():
    images, read = {name: torch.rand(1, *SHAPE) for name in "abc"}, []

    def transform(item):
        read.append(item["image"])
        return {"image": images[item["image"]]}

    one_by_one = Volumes([{"image": name, "participant_id": name} for name in "abc"], transform)
    remembered = Remembered(one_by_one, 2)
    assert len(remembered) == 3 and remembered.items == one_by_one.items
    for index in (0, 1, 0, 1, 2, 1, 0):
        assert torch.equal(remembered[index], one_by_one[index])
        read.pop()
    assert read == ["a", "b", "c", "a"]
    volume = remembered[0]
    volume.zero_()
    assert remembered[0].any()  # what is remembered is not what is handed out


def test_a_blur_of_8_mm_has_that_width():
    plane = torch.zeros(1, 33, 35, 37)  # one voxel alone would become too faint for 8 bits
    plane[0, :, :, 18] = 1
    blurred = Blurred(volumes(a=plane), spacing_mm=1.0, number=1, seed=0)[0][0]
    profile = blurred[16, 17] / blurred.max()
    assert profile[18 + 4] == pytest.approx(0.5, abs=0.03) and profile[18 - 4] == pytest.approx(0.5, abs=0.03)
    assert torch.equal(blurred, (255 * blurred).round() / 255)
    assert len(Repeated(plane)) == 3 and Repeated(plane)[2] is plane


def test_a_blur_is_monais_at_a_part_of_its_cost():
    image = torch.rand(1, 20, 28, 24)
    blurred = Blurred(volumes(a=image), spacing_mm=4.0, number=1, seed=0)
    smooth = GaussianSmooth(8 / np.sqrt(8 * np.log(2)) / 4)
    assert (blurred[0] - smooth(blurred.volumes[0])).abs().max() < 0.501 / 255


def test_the_seed_draws_the_blurred_volumes():
    named = volumes(**{name: torch.rand(1, *SHAPE) for name in "abcdefgh"})
    drawn = {seed: [item["image"] for item in Blurred(named, 1.0, number=3, seed=seed).items] for seed in range(9)}
    assert all(len(set(names)) == 3 and names == sorted(names) for names in drawn.values())
    assert len(set(map(tuple, drawn.values()))) > 1 and set().union(*drawn.values()) == set("abcdefgh")
    few = Blurred(named, 1.0, number=3, seed=0)
    everyone = Blurred(named, 1.0, number=100, seed=0)
    assert [item["image"] for item in everyone.items] == list("abcdefgh")
    for number, item in enumerate(few.items):
        assert torch.equal(few[number], everyone["abcdefgh".index(item["image"])])


def test_sets_are_found_by_name_and_lie_on_the_grid(tmp_path):
    generated(tmp_path / "a")
    found = find_samples({"LDM": tmp_path / "a"}, SPACING_MM, fewest=4)
    assert [item["participant_id"] for item in found["LDM"]] == [f"sub-000{n}" for n in range(1, 5)]
    with pytest.raises(ValueError, match="LDM: volumes of 4 participants; at least 5 are needed"):
        find_samples({"LDM": tmp_path / "a"}, SPACING_MM, fewest=5)
    with pytest.raises(ValueError, match="the name 'real' is reserved for another row"):
        find_samples({"real": tmp_path / "a"}, SPACING_MM, fewest=4, taken=("real",))
    with pytest.raises(ValueError, match="samples: the set of .* has an empty name"):
        find_samples({" ": tmp_path / "a"}, SPACING_MM, fewest=4)
    with pytest.raises(FileNotFoundError, match="no such folder of volumes"):
        find_samples({"LDM": tmp_path / "b"}, SPACING_MM, fewest=4)
    for nothing in (None, {}, str(tmp_path)):
        with pytest.raises(ValueError, match="expected names and folders of generated volumes"):
            find_samples(nothing, SPACING_MM, fewest=4)


def test_the_studys_own_scans_are_no_generated_set(tmp_path):
    """They passed, in their own folder or another, as a set that is nearer than the floor."""
    folder = generated(tmp_path / "a")
    other = shutil.copytree(folder, tmp_path / "b")
    turned = nib.load(path_of(folder, 3)).as_reoriented([[0, -1], [1, 1], [2, 1]])
    nib.save(turned, path_of(other, 3))  # another file of the same voxels
    for number in (1, 2, 4):
        shutil.rmtree(other / f"sub-000{number}")
    scans = find_volumes(other, SPACING_MM)
    with pytest.raises(ValueError, match="LDM: 1 of 4 volumes are scans of the data set.*a.sub-0003.*of .*b.sub-0003"):
        find_samples({"LDM": folder}, SPACING_MM, fewest=4, scans=scans)
    shutil.rmtree(folder / "sub-0003")
    assert len(find_samples({"LDM": folder}, SPACING_MM, fewest=3, scans=scans)["LDM"]) == 3


def test_equal_volumes_of_a_set_are_told(tmp_path, caplog):
    """One head twelve times counted as 12 volumes, without a word. A collapsed generator makes such sets, and is scored."""
    folder = generated(tmp_path / "a")
    shutil.copy(path_of(folder, 2), path_of(folder, 4))
    assert len(find_samples({"LDM": folder}, SPACING_MM, fewest=4)["LDM"]) == 4
    assert "LDM: 1 of 4 volumes have the same voxels as another" in caplog.text


def test_a_folder_is_one_set_and_not_two(tmp_path):
    folder = generated(tmp_path / "a", 5)
    (tmp_path / "b").symlink_to(folder)
    with pytest.raises(ValueError, match=r"samples: 'LDM' \(.*a\) and 'DDIM' \(.*b\) are the same volumes. Leave one out"):
        find_samples({"LDM": folder, "DDIM": tmp_path / "b"}, SPACING_MM, fewest=4)
    (tmp_path / "b").unlink()
    shutil.copytree(folder, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "sub-0005")  # fewer of the same, to see what n does
    assert len(find_samples({"LDM": folder, "fewer": tmp_path / "b"}, SPACING_MM, fewest=4)) == 2


@pytest.mark.parametrize("peak", [255, -0.5])
def test_intensities_of_generated_volumes_are_refused_when_they_are_found(tmp_path, peak):
    """They were found after all real scans had been worked on."""
    folder = generated(tmp_path / "a", peak=peak)
    with pytest.raises(ValueError, match="sub-0001_T1w.nii.gz: has intensities of .*; generated volumes are not rescaled"):
        find_samples({"LDM": folder}, SPACING_MM, fewest=4)


def test_a_cropped_volume_is_refused_and_not_padded(tmp_path):
    path = path_of(generated(tmp_path / "a"), 2)
    image = nib.load(path)
    nib.save(image.slicer[:, 1:, :], path)
    with pytest.raises(
        ValueError, match=r"sub-0002_T1w.nii.gz: has 20 x 27 x 20 voxels \(left.* the model's grid 20 x 28 x 20"
    ):
        find_samples({"LDM": tmp_path / "a"}, SPACING_MM, fewest=4)


def test_a_volume_at_another_place_is_refused_and_not_interpolated(tmp_path):
    path = path_of(generated(tmp_path / "a"), 2)
    image, samples = nib.load(path), {"LDM": tmp_path / "a"}
    for mm, refused in ((4.0, True), (0.02, True), (0.004, False)):  # of voxels of 8 mm
        affine = image.affine.copy()
        affine[1, 3] += mm
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
        if refused:
            with pytest.raises(ValueError, match=f"sub-0002_T1w.nii.gz: lies {mm / 8:.2g} voxels .* away from the model"):
                find_samples(samples, SPACING_MM, fewest=4)
        else:
            find_samples(samples, SPACING_MM, fewest=4)


def test_the_grid_may_be_stored_in_any_orientation(tmp_path):
    path = path_of(generated(tmp_path / "a"), 2)
    image = nib.load(path)
    for axes in ("LAS", "PIR", "SLA"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        nib.save(image.as_reoriented(turn), path)
        find_samples({"LDM": tmp_path / "a"}, SPACING_MM, fewest=4)


def test_few_participants_are_refused_with_their_number():
    with pytest.raises(ValueError, match="LDM: volumes of 2 participants; at least 3 are needed"):
        refuse_few([{"participant_id": name} for name in ("sub-1", "sub-1", "sub-2")], "LDM", 3)


def test_halves_share_nobody_and_leave_nobody_out():
    participants = [f"sub-{n:02d}" for n in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9)]  # 8 people, 13 scans
    a, b = halves(participants, seed=0)
    assert sorted([*a, *b]) == list(range(13))
    people = [{participants[row] for row in rows} for rows in (a, b)]
    assert not people[0] & people[1] and [len(half) for half in people] == [4, 4]
    assert any(set(a) != set(halves(participants, seed)[0]) for seed in range(1, 5))
