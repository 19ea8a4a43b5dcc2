"""The shipped weights pass the memorisation audit, and deliberately overfitted weights fail it."""

import csv
import json
import shutil

import make_demo_data
import pandas as pd
import pytest
import torch
from monai.bundle import run

from brain_ldm_bundle.scripts.shared.files import save_weights
from brain_ldm_bundle.scripts.shared.weights import add_to_recipe, read_recipe

COVARIATES = ["age", "sex", "ventricles_ml", "brain_normalised_ml"]
SPLITS = ["train"] * 24 + ["validation"] * 2 + ["test"] * 10  # with six training scans the audit found 1 of 6 controls
REPEATED = 3  # of the training scans: what a data set holds many times is memorised first
NOISES = 2  # volumes for the covariates of each of these
STEPS, BATCH = 240, 3


def audit(data, folder, cache_dir):
    """Generate what `data` requests, and audit: exit status (0: passed), counts, rows of the generated volumes."""
    models = {"models_dir": str(folder / "models"), "use_device": "cpu"}
    generated = str(folder / "generated")
    run(config_file="configs/inference.json", requests=str(data / "requests.tsv"), output_dir=generated, steps=20, **models)
    places = {"dataset_dir": str(data), "cache_dir": str(cache_dir), "output_dir": str(folder / "audit")}
    status = 0
    try:
        run("auditing", config_file="configs/evaluate.json", audited_dir=generated, **places, **models)
    except SystemExit as end:
        status = end.code
    with open(folder / "audit" / "memorisation.tsv", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["kind"] == "sample"]
    return status, json.loads((folder / "audit" / "memorisation.json").read_text())["counts"], rows


@pytest.mark.slow
def test_weights_pass_as_shipped_and_fail_after_over_fitting(bundle, tmp_path):
    """Fine-tuned on a data set that holds three of its scans 113 times, the model repeats these three."""
    data, cache_dir = tmp_path / "data", tmp_path / "cache"
    settings = {"version": make_demo_data.VERSION, "seed": 1, "spacing_mm": 4, "protocol": "many", "covariates": "wide"}
    table = make_demo_data.make_cohort(data, len(SPLITS), settings)  # the shipped weights learnt from seed 0
    table["split"] = SPLITS
    table.to_csv(data / "participants.tsv", sep="\t", index=False)
    requests = pd.concat([table.loc[: REPEATED - 1, COVARIATES]] * NOISES)
    requests.insert(0, "participant_id", [f"sub-{number}" for number in range(len(requests))])
    requests.to_csv(data / "requests.tsv", sep="\t", index=False)
    for name in ("shipped", "tuned"):
        (tmp_path / name / "models").mkdir(parents=True)
        shutil.copy(bundle / "models" / "demo_autoencoder.pt", tmp_path / name / "models" / "autoencoder.pt")
    shutil.copy(bundle / "models" / "demo_model.pt", tmp_path / "shipped" / "models" / "model.pt")

    status, counts, _ = audit(data, tmp_path / "shipped", cache_dir)
    assert status == 0 and counts["sample"]["flagged"] == 0
    assert counts["control"]["share"] == 1

    table["image"] = [f"{name}/anat/{name}_T1w.nii.gz" for name in table["participant_id"]]
    scans = table[["participant_id", "image", *COVARIATES]].to_dict("records")
    repeats = (STEPS * BATCH // 2 - SPLITS.count("train")) // REPEATED
    training = scans[: SPLITS.count("train")] + repeats * scans[:REPEATED]
    held_out = [scan for scan, split in zip(scans, SPLITS) if split == "validation"]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": training, "validation": held_out}))
    run(
        "training_diffusion",
        config_file=["configs/train.json", "configs/demo.json"],
        dataset_dir=str(data),
        datalist=str(tmp_path / "datalist.json"),
        cache_dir=str(cache_dir),
        models_dir=str(tmp_path / "tuned" / "models"),
        output_dir=str(tmp_path / "tuned" / "output"),
        init_diffusion=str(tmp_path / "shipped" / "models" / "model.pt"),
        use_device="cpu",
        diffusion_epochs=2,
        diffusion_batch_size=BATCH,
        ema_momentum=0.05,
        condition_dropout=0.0,
        panel_interval=1000,
    )
    model = (
        tmp_path / "tuned" / "models" / "model.pt"
    )  # the start, because validation finds that the over-fitting does not help
    over_fitted = torch.load(model.with_name("resume") / "diffusion.pt", weights_only=True)["ema"]
    acquisition = read_recipe(model)["acquisition"]
    save_weights(over_fitted, model)
    add_to_recipe(model, {"acquisition": acquisition})
    status, counts, rows = audit(data, tmp_path / "tuned", cache_dir)
    assert status == 1
    assert counts["control"]["share"] == 1  # not for want of power
    assert counts["sample"]["flagged"] >= 0.8 * counts["sample"]["n"]
    asked_for = {f"sub-{number}": scans[number % REPEATED]["participant_id"] for number in range(len(rows))}
    assert all(row["latent_nearest"] == asked_for[row["participant_id"]] for row in rows if row["flagged"] == "true")
