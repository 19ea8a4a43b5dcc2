"""An edited head lies at the position of the input head. Strength 0 reconstructs it, strength 1 makes a new head."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT
from monai.bundle import ConfigParser, run
from monai.data import MetaTensor
from tiny_bundles import write_ldm_weights

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.generation.editing import Editor, read_edits, read_request, refuse_edits
from brain_ldm_bundle.scripts.model.dpm_solver import make_sampler
from brain_ldm_bundle.scripts.model.sampler import LatentSampler, row_seed
from brain_ldm_bundle.scripts.shared import mni_box

IMAGE_SIZE = (8, 12, 4)
SCHEMA = CovariateSchema.from_dict(
    {"covariates": [{"name": "age", "unit": "years", "range": [40, 80]}, {"name": "sex", "levels": {"F": 0, "M": 1}}]}
)
REQUEST = {"age": 60, "sex": "F", "strength": 0.4, "seed": 3}


def editor(steps=10):
    return Editor(LatentSampler(tiny.autoencoder(), make_sampler("ddim", steps), IMAGE_SIZE), SCHEMA, REQUEST)


def image():
    return torch.rand((1, 1, *IMAGE_SIZE), generator=torch.Generator().manual_seed(5))


def edited(**changes):
    return editor()(image(), tiny.unet(), REQUEST | changes)


def distance(a, b):
    return (a - b).abs().mean().item()


# Strength


def test_strength_0_is_the_reconstruction_whatever_is_asked():
    with torch.inference_mode():
        expected = tiny.autoencoder().reconstruct(image()).clamp(0, 1)
    torch.testing.assert_close(edited(strength=0), expected)
    assert torch.equal(edited(strength=0, age=75, seed=9), edited(strength=0))


def test_strength_1_is_the_volume_that_a_cohort_has_for_that_seed():
    sampler = editor().sampler
    expected = sampler(torch.tensor([[[0.5, 0.0]]]), tiny.unet(), [3]).clamp(0, 1)
    assert torch.equal(edited(strength=1), expected)


def test_the_stronger_the_edit_the_further_from_the_image():
    distances = [distance(edited(strength=strength), edited(strength=0)) for strength in (0.1, 0.3, 0.6, 1)]
    assert distances == sorted(distances) and distances[0] > 0


def test_the_walk_begins_at_the_step_that_the_strength_names():
    """Of ten steps 900, 800, ..., 0, strength 0.3 takes the last three, from a latent noised to step 200."""
    sampler = editor().sampler
    seen = []
    predict = sampler._predict

    def noted(network, latent, t, context):
        seen.append((t, latent.clone()))
        return predict(network, latent, t, context)

    sampler._predict = noted
    start = torch.ones(1, 3, 4, 6, 2)
    sampler(torch.tensor([[[0.5, 0.0]]]), tiny.unet(), [3], start, 0.3)
    assert [t for t, _ in seen] == [200, 100, 0]
    noise = torch.randn((1, 3, 4, 6, 2), generator=torch.Generator().manual_seed(3))
    kept = sampler.scheduler.alphas_cumprod[200]
    torch.testing.assert_close(seen[0][1], kept.sqrt() * start + (1 - kept).sqrt() * noise)


def test_latents_are_scaled_before_they_are_noised():
    """Without noise to remove, the scale changes nothing."""
    network = tiny.unet()
    network.scale_factor.fill_(0.25)
    torch.testing.assert_close(editor()(image(), network, REQUEST | {"strength": 0}), edited(strength=0))
    assert distance(editor()(image(), network, REQUEST), edited()) > 1e-3


def test_a_request_gives_the_same_volume_again_and_seed_and_covariates_another():
    torch.manual_seed(1)
    first = edited()
    torch.manual_seed(2)
    assert torch.equal(edited(), first)
    assert not torch.equal(edited(seed=4), first)
    assert not torch.equal(edited(age=79), first)
    assert torch.equal(edited(age="60", strength="0.4", seed="3"), first)  # as a form sends them


# Inversion


def inverted(source=REQUEST, image=image, seed=3, **changes):
    values, given = ({name: row[name] for name in SCHEMA.names} for row in (REQUEST | changes, source))
    return editor().edit(image(), tiny.unet(), values, 1.0, seed, given)


def test_an_inversion_begins_at_the_image_and_draws_nothing():
    """By added noise, strength 1 would make the same new head of every image."""
    assert torch.equal(inverted(seed=4), inverted())
    assert distance(inverted(image=lambda: 1 - image()), inverted()) > 1e-3
    assert distance(inverted(age=79), inverted()) > 1e-4 and distance(inverted(source=REQUEST | {"age": 42}), inverted()) > 1e-4


def test_without_steps_an_inversion_is_the_reconstruction():
    source = {"age": 42, "sex": "M"}
    found = editor().edit(image(), tiny.unet(), {"age": 79, "sex": "F"}, 0.0, 3, source)
    assert torch.equal(found, edited(strength=0))


def edits(tmp_path, rows, columns="participant_id\timage\tage\tsex", **settings):
    table = tmp_path / "edits.tsv"
    table.write_text("\n".join([columns, *rows]) + "\n")
    (tmp_path / "head.nii.gz").touch()
    given = {"strength": 0.4, "seed": 7} | settings.pop("request", {})
    return read_edits(SCHEMA, given, settings.pop("image", None), table, tmp_path / "out", **settings)


def test_a_table_names_the_image_of_each_row_and_gives_it_a_seed_of_its_own(tmp_path):
    with_source = "participant_id\timage\tage\tsex\tsource_age\tsource_sex"
    rows = ["a\thead.nii.gz\t70\tF\t60\tM", "b\tout/sub-a/anat/sub-a_T1w.nii.gz\t50\tM\t70\tF"]
    first, second = edits(tmp_path, rows, with_source, method="inversion")
    assert (first.image, first.name, first.strength) == (tmp_path / "head.nii.gz", "sub-a", 0.4)
    assert first.values == {"age": 70, "sex": "F"} and first.source == {"age": 60, "sex": "M"}
    assert first.seed == row_seed(7, "a") and second.seed == row_seed(7, "b") and second.image.name == "sub-a_T1w.nii.gz"


def test_an_image_that_a_row_above_makes_may_be_named_by_another_way(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    for way in ("real", f"../{tmp_path.name}/out"):
        rows = ["a\thead.nii.gz\t70\tF", f"b\t{way}/sub-a/anat/sub-a_T1w.nii.gz\t50\tM"]
        assert len(edits(tmp_path, rows)) == 2
    with pytest.raises(ValueError, match="sub-b: image .*sub-a_T1w.nii: no such file, and no row above makes it"):
        edits(tmp_path, ["a\thead.nii.gz\t70\tF", "b\tout/sub-a/anat/sub-a_T1w.nii\t50\tM"])


def test_every_edit_belongs_to_one_shard_and_keeps_its_seed(tmp_path):
    rows = [f"{name}\thead.nii.gz\t70\tF" for name in "abc"]
    alone = edits(tmp_path, rows)
    first, second = (edits(tmp_path, rows, shard=shard) for shard in ("1/2", "2/2"))
    assert [first[0], second[0], first[1]] == alone and len(first) == 2 and len(second) == 1
    with pytest.raises(ValueError, match="shard must be K/N"):
        edits(tmp_path, rows, shard="half")
    rows.append("d\tout/sub-c/anat/sub-c_T1w.nii.gz\t70\tF")
    assert len(edits(tmp_path, rows, shard="1/1")) == 4
    with pytest.raises(ValueError, match="sub-d: a row of another shard makes the image .*sub-c_T1w.nii.gz. Make that shard"):
        edits(tmp_path, rows, shard="2/2")


def test_processes_of_torchrun_do_not_all_make_the_same_edits(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="each of 2 processes would make all edits. .* --shard 1/2"):
        refuse_edits(edits(tmp_path, ["a\thead.nii.gz\t70\tF"]), None, "dpm++")


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        ("a\tgone.nii.gz\t70\tF", {}, r"edits.tsv: sub-a: image .*gone.nii.gz: no such file"),
        ("a\tout/sub-a/anat/sub-a_T1w.nii.gz\t70\tF", {}, "edits.tsv: sub-a: .*no such file, and no row above makes it"),
        ("a\thead.nii.gz\t70\tF\nA\thead.nii.gz\t70\tF", {}, "edits.tsv: sub-A: differs from sub-a only in case"),
        ("a\tn/a\t70\tF", {}, "edits.tsv: sub-a: has no image. Fill the column 'image'"),
        ("a\thead.nii.gz\t70\tF", {"method": "inversion"}, "edits.tsv: sub-a: source: age is missing"),
        ("a\thead.nii.gz\t70\tF", {"image": "x"}, "is a table of edits, so image, source and covariates are its columns"),
        ("a\thead.nii.gz\t70\tF", {"request": {"age": 3}}, "is a table of edits, so image, source and covariates"),
        ("a\thead.nii.gz\t70\tF", {"source": {"age": 60, "sex": "F"}}, "source is given, but only the method inversion reads"),
    ],
)
def test_bad_tables_of_edits_are_refused(tmp_path, row, settings, message):
    with pytest.raises(ValueError, match=message):
        edits(tmp_path, [row], **settings)


def test_an_inversion_needs_the_covariates_of_the_image_and_a_sampler_that_can_be_reversed(tmp_path):
    (tmp_path / "head.nii.gz").touch()

    def read(**source):
        return read_edits(SCHEMA, REQUEST, tmp_path / "head.nii.gz", method="inversion", source=source)

    with pytest.raises(ValueError, match=r"needs the covariates of the image as it is. Add --source \"\{'age': \.\.\., 'sex'"):
        read()
    with pytest.raises(ValueError, match="source: unknown covariate 'sexx'"):
        read(age=60, sexx="F")
    with pytest.raises(
        ValueError, match="sampler_name is 'dpm\\+\\+', whose steps cannot be. Add --sampler_name ddim --steps 50"
    ):
        refuse_edits(read(age=60, sex="F"), None, "dpm++")
    refuse_edits(read(age=60, sex="F"), None, "ddim")


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": 1.2}, r"strength must be a number from 0 .* to 1 .*, got 1\.2"),
        ({"strength": "much"}, "strength must be .* got 'much'"),
        ({"strength": True}, "strength must be .* got True"),
        ({"strength": None}, "strength must be .* got None"),
        ({"seed": -1}, "seed must be a whole number from 0 .* got -1"),
        ({"seed": 1.5}, "seed must be a whole number .* got 1.5"),
        ({"age": "old"}, "age in years must be a number.* got 'old'"),
        ({"age": 720}, "age is 720, which looks like months"),
        ({"sex": "W"}, "sex must be 'F' or 'M', got 'W'"),
        ({"age": None}, "age is missing"),
        ({"gae": 60}, r"unknown covariate 'gae' \(did you mean 'age'\?\)"),
    ],
)
def test_a_bad_request_is_refused_with_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        read_request(SCHEMA, REQUEST | changes)


def test_images_without_a_head_are_refused():
    network = tiny.unet()
    with pytest.raises(ValueError, match="the image: is constant in the model's field of view"):
        editor()(torch.zeros(1, 1, *IMAGE_SIZE), network)
    with pytest.raises(ValueError, match="has voxels that are NaN"):
        editor()(torch.full((1, 1, *IMAGE_SIZE), torch.nan), network)
    with pytest.raises(ValueError, match=r"one image of one channel .* got \(1, 2, 8, 12, 4\)"):
        editor()(torch.rand(1, 2, *IMAGE_SIZE), network)
    far = MetaTensor(image(), meta={"filename_or_obj": "far.nii", "spatial_shape": (20, 28, 20)})
    far.meta["original_affine"] = torch.diag(torch.tensor([8.0, 8.0, 8.0, 1.0]))
    with pytest.raises(ValueError, match=r"far\.nii: reaches from .* must cover a brain in MNI space"):
        editor()(far, network)
    assert editor()(far, network, REQUEST | {"strength": 1}).shape == far.shape  # only its grid is taken


@pytest.mark.parametrize(("spacing_mm", "coarse"), [(24.0, False), (32.0, True)])
def test_an_image_with_much_longer_voxels_than_the_models_is_named(spacing_mm, coarse):
    """The model's are 20 mm."""
    given = MetaTensor(image(), meta={"filename_or_obj": "coarse.nii", "spatial_shape": (20, 28, 20)})
    given.meta["original_affine"] = nib.affines.from_matvec(np.diag([spacing_mm] * 3), [-160, -300, -160])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        editor(2)(given, tiny.unet(), REQUEST)
    said = [str(each.message) for each in caught if "longer voxels" in str(each.message)]
    assert len(said) == coarse and all("coarse.nii (32 x 32 x 32 mm), have much longer" in one for one in said)


def test_a_label_map_is_refused_by_the_name_of_its_file(tmp_path):
    path = tmp_path / "dseg.nii.gz"
    nib.save(nib.Nifti1Image((np.indices((30, 30, 30)).sum(axis=0) // 20).astype(np.uint8), np.eye(4)), path)
    given = MetaTensor(image(), meta={"filename_or_obj": str(path)})  # interpolated, so its values no longer tell
    with pytest.raises(ValueError, match=rf"^{path}: has few different values"):
        editor()(given, tiny.unet())


def test_noise_is_refused_and_a_head_upside_down_gets_a_warning(tmp_path):
    tiny.write_dataset(tmp_path / "data", 1, 0)
    upright = next((tmp_path / "data").rglob("*_T1w.nii.gz"))
    values = nib.load(upright).get_fdata()
    values[5:15, 8:18, :10] = 200  # the neck
    noise, turned = np.random.default_rng(0).random(values.shape), values[..., ::-1]
    affine, size = nib.load(upright).affine, mni_box.size(tiny.SPACING_MM)
    ours = Editor(LatentSampler(tiny.autoencoder(), make_sampler("ddim", 2), size), SCHEMA, REQUEST)

    def edit(path, volume):
        nib.save(nib.Nifti1Image(volume.astype(np.float32), affine), path)
        loaded = torch.from_numpy(np.flip(volume, 0).copy()).float()[None, None] / volume.max()  # LAS
        return ours(MetaTensor(loaded, meta={"filename_or_obj": str(path)}), tiny.unet())

    with pytest.raises(ValueError, match="noise.nii: neighbouring voxels have a correlation of -?0.0., as in noise"):
        edit(tmp_path / "noise.nii", noise)
    with pytest.warns(UserWarning, match="turned.nii, show more above the head than below it. They may be upside down"):
        edit(tmp_path / "turned.nii", turned)


def test_a_network_without_the_weights_is_refused():
    """MONAI Label runs with random weights if no tensor of the file fits."""
    guarded = editor()
    guarded.recipe = {"spacing_mm": 8.0}
    with pytest.raises(ValueError, match="the network does not hold the weights of model.pt"):
        guarded(image(), tiny.unet())


# The workflow


def test_what_a_request_can_set_are_the_covariates_of_the_bundle():
    config = json.loads((ROOT / "brain_ldm_bundle" / "configs" / "inference.json").read_text())
    schema = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
    assert sorted(config["displayable_configs"]) == sorted([*schema.names, "strength", "seed"])
    read_request(schema, config["displayable_configs"])


@pytest.fixture
def workflow(bundle, tmp_path):
    """The configuration, tiny weights, and a head in the order PIR that lies on no voxel of the model's grid."""
    (tmp_path / "models").mkdir()
    write_ldm_weights(tmp_path / "models")
    tiny.write_dataset(tmp_path / "data", 1, 0)
    nifti = nib.load(next((tmp_path / "data").rglob("*_T1w.nii.gz")))
    wanted = nib.orientations.axcodes2ornt("PIR")
    nifti = nifti.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(nifti.affine), wanted))
    affine = nifti.affine.copy()
    affine[:3, 3] += (3, -2, 1)
    image = nib.Nifti1Image(np.asarray(nifti.dataobj)[:, 1:, :-2], affine)
    image.set_sform(affine, code="mni")
    nib.save(image, tmp_path / "head.nii.gz")
    return tmp_path


def test_an_edited_head_lies_where_the_head_lay(workflow, capsys):
    request = {"age": 70, "sex": "F", "ventricles_ml": 90, "brain_normalised_ml": 1500}
    settings = {"models_dir": str(workflow / "models"), "use_device": "cpu", "steps": 4, "request": request}
    image = workflow / "head.nii.gz"
    run(
        "editing",
        config_file="configs/inference.json",
        image=str(image),
        strength=0,
        offset_limit=1,
        output_dir=str(workflow / "out"),
        **settings,
    )
    said = "".join(capsys.readouterr())
    assert "offset_limit is 1, but has no effect here: only a model of label maps reads it" in said
    assert "strength is" not in said
    (path,) = (workflow / "out").glob("sub-*/anat/*_T1w.nii.gz")
    given, made = nib.load(image), nib.load(path)
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Synthetic"] and sidecar["Description"].startswith("Synthetic: a scan edited")
    assert (sidecar["Strength"], sidecar["EditedImage"]) == (0, "head.nii.gz")

    # By hand: onto the grid, through the autoencoder, back.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser = ConfigParser(ConfigParser.load_config_file("configs/inference.json"))
    parser.update(settings)
    network, preprocessing, postprocessing = (
        parser.get_parsed_content(key) for key in ("autoencoder", "preprocessing", "postprocessing")
    )
    data = preprocessing({"image": str(image)})
    with torch.inference_mode():
        data["pred"] = MetaTensor(network.reconstruct(data["image"][None].as_tensor())[0].clamp(0, 1), meta=data["image"].meta)
    expected = np.asarray(postprocessing(data)["pred"][0])
    np.testing.assert_allclose(made.get_fdata(), expected, atol=1.01 / 255)
    assert expected.std() > 0.01


def test_a_new_head_is_not_called_an_edited_scan(workflow):
    """At strength 1 nothing of the scan is left but its grid."""
    settings = {"image": str(workflow / "head.nii.gz"), "output_dir": str(workflow / "out"), "strength": 1, "steps": 2}
    settings["request"] = {"age": 70, "sex": "F", "ventricles_ml": 90, "brain_normalised_ml": 1500}
    settings |= {"models_dir": str(workflow / "models"), "use_device": "cpu"}
    run("editing", config_file="configs/inference.json", **settings)
    (sidecar,) = (workflow / "out").glob("sub-*/anat/*_T1w.json")
    assert json.loads(sidecar.read_text())["Description"].startswith("Synthetic image, made by a generative model. Not a scan.")


def test_other_weights_or_steps_do_not_overwrite_an_edit(workflow):
    request = {"age": 70, "sex": "F", "ventricles_ml": 90, "brain_normalised_ml": 1500}
    settings = {"image": str(workflow / "head.nii.gz"), "request": request, "output_dir": str(workflow / "out")}
    settings |= {"models_dir": str(workflow / "models"), "use_device": "cpu"}
    made = []
    for steps in (2, 3, 3):
        run("editing", config_file="configs/inference.json", steps=steps, **settings)
        made.append(len(list((workflow / "out").glob("sub-*/anat/*_T1w.nii.gz"))))
    weights = torch.load(workflow / "models" / "model.pt")
    key = next(key for key, value in weights.items() if value.is_floating_point())
    torch.save(weights | {key: weights[key] + 1}, workflow / "models" / "model.pt")
    run("editing", config_file="configs/inference.json", steps=3, **settings)
    made.append(len(list((workflow / "out").glob("sub-*/anat/*_T1w.nii.gz"))))
    assert made == [1, 2, 2, 3]


def test_a_missing_image_is_named(bundle, tmp_path):
    (tmp_path / "models").mkdir()
    write_ldm_weights(tmp_path / "models")
    settings = {
        "image": str(tmp_path / "none.nii"),
        "models_dir": str(tmp_path / "models"),
        "output_dir": str(tmp_path / "out"),
    }
    with pytest.raises(RuntimeError) as caught:  # MONAI's, around ours
        run("editing", config_file="configs/inference.json", **settings)
    assert "none.nii: no such file" in str(caught.value.__cause__)
    assert not (tmp_path / "out").exists()


def test_a_table_of_edits_is_made_in_its_order_and_continued(workflow):
    """The second row edits the result of the first; each row equals a single edit with its seed."""
    own = "70\tF\t90\t1500"
    header = "participant_id\timage\tage\tsex\tventricles_ml\tbrain_normalised_ml"
    header += "".join(f"\tsource_{name}" for name in ("age", "sex", "ventricles_ml", "brain_normalised_ml"))
    out = workflow / "out"
    rows = f"a\thead.nii.gz\t{own}\t50\tM\t20\t1400\nb\tout/sub-a/anat/sub-a_T1w.nii.gz\t50\tM\t20\t1400\t{own}\n"
    (workflow / "edits.tsv").write_text(f"{header}\n{rows}")
    settings = {"models_dir": str(workflow / "models"), "use_device": "cpu", "steps": 3, "sampler_name": "ddim"}
    settings |= {"method": "inversion", "strength": 0.7, "config_file": "configs/inference.json"}
    files = [out / name / "anat" / f"{name}_T1w.nii.gz" for name in ("sub-a", "sub-b")]
    for shard, number in (("1/2", 1), ("2/2", 2), (None, 2)):
        run("editing", requests=str(workflow / "edits.tsv"), output_dir=str(out), shard=shard, **settings)
        assert [file.exists() for file in files] == [True, number == 2]
    written = [file.stat().st_mtime_ns for file in files]
    (out / "sub-b" / "anat" / "sub-b_T1w.json").unlink()
    run("editing", requests=str(workflow / "edits.tsv"), output_dir=str(out), **settings)
    now = [file.stat().st_mtime_ns for file in files]
    assert now[0] == written[0] and now[1] > written[1]
    sidecar = json.loads(files[1].with_name("sub-b_T1w.json").read_text())
    assert sidecar["EditedImage"] == "sub-a_T1w.nii.gz" and sidecar["Seed"] == row_seed(0, "b")
    assert (sidecar["Method"], sidecar["SourceCovariates"]["age"]) == ("inversion", 70)
    source = {"age": 50, "sex": "M", "ventricles_ml": 20, "brain_normalised_ml": 1400}
    request = {"age": 70, "sex": "F", "ventricles_ml": 90, "brain_normalised_ml": 1500}
    single = {"image": str(workflow / "head.nii.gz"), "source": source, "request": request, "output_dir": str(workflow / "one")}
    run("editing", **single, **settings)
    [alone] = (workflow / "one").glob("sub-*/anat/*_T1w.nii.gz")
    np.testing.assert_array_equal(nib.load(alone).get_fdata(), nib.load(files[0]).get_fdata())
