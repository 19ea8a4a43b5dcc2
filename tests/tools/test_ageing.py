"""Each sign of age in a simulated head has its size, lies where it should, and moves the right way at fixed volumes."""

import dataclasses

import numpy as np
import pytest
import torch
from simulation import ageing, labelled_subject, subject
from simulation.acquisition import acquire
from simulation.ageing import CHANGES, Signs, draw_signs
from simulation.atlas import load_atlas
from simulation.subject import Person, measure_ml, voxel_centres_mm

DIRECTIONS = {  # how an old head differs from a young one
    **{"contrast": -1, "cortex": -1, "superior_sulci": 1, "sylvian_fissures": 1},
    **{"caps_ml": 1, "spots_ml": 1, "hippocampus_ml": -1, "horns_ml": 1},
}
SIGNS = Signs(**{name: value for name, (value, _) in CHANGES.items()})
SPACING_MM = 2
GRID_MM = voxel_centres_mm((80, 70, 36), SPACING_MM)  # round the temporal lobes


def soft_ml(weights):
    return float(weights.sum()) * SPACING_MM**3 / 1000


def pair_of_heads(monkeypatch, ages=(46.0, 80.0)):
    """Return T1w and labels of a young and an old head that differ in nothing else, at 4 mm."""
    monkeypatch.setattr(ageing, "SPREAD_YEARS", 0.0)
    torch.set_num_threads(1)
    atlas = load_atlas(4)
    return [subject.make_subject(Person(age, "F", 1300.0, 0.76, 40.0), atlas, 3, "one") for age in ages]


def test_signs_move_with_age_and_differ_between_people_of_one_age():
    assert DIRECTIONS.keys() == CHANGES.keys()
    generator = torch.Generator().manual_seed(0)
    logs = {age: np.log([list(vars(draw_signs(age, generator)).values()) for _ in range(400)]) for age in (46.0, 80.0)}
    moved = logs[80.0].mean(0) - logs[46.0].mean(0)
    assert np.sign(moved).tolist() == list(DIRECTIONS.values())
    assert moved[list(CHANGES).index("hippocampus_ml")] == pytest.approx(34 * -0.0085, abs=0.03)  # 0.85 % a year
    between_people = np.abs(logs[46.0].std(0) * 34 / moved)  # in years
    assert between_people == pytest.approx(6, abs=1)
    assert np.abs(np.corrcoef(logs[46.0].T) - np.eye(8)).max() < 0.2  # each sign has its own deviation


def test_hippocampi_and_horns_have_their_volumes_and_places():
    allowed = torch.ones(GRID_MM.shape[1:], dtype=torch.bool)
    hippocampus, horns, is_horn = ageing.medial_temporal(GRID_MM, 1.0, SPACING_MM, allowed, SIGNS)
    assert soft_ml(hippocampus) == pytest.approx(9.5, rel=0.08)
    assert soft_ml(is_horn) == pytest.approx(1.8, abs=SPACING_MM**3 / 1000)
    assert float((hippocampus + horns).max()) <= 1
    for sign in (-1, 1):
        half = GRID_MM[0] * sign > 0
        assert soft_ml(hippocampus * half) == pytest.approx(4.75, rel=0.08)
        body, horn = ((GRID_MM * weight).sum((1, 2, 3)) / weight.sum() for weight in (hippocampus * half, is_horn * half))
        assert body.tolist() == pytest.approx([sign * 27, -21, -15], abs=3.5)
        assert sign * (horn - body)[0] > 2 and (horn - body)[2] > 1  # lateral and above


def test_a_larger_head_has_a_larger_hippocampus():
    allowed = torch.ones(GRID_MM.shape[1:], dtype=torch.bool)
    _, _, is_horn = ageing.medial_temporal(GRID_MM, 1.1, SPACING_MM, allowed, SIGNS)
    assert soft_ml(is_horn) == pytest.approx(1.8 * 1.1**3, abs=SPACING_MM**3 / 1000)


def test_thinning_moves_the_border_to_white_matter_only():
    generator = torch.Generator().manual_seed(1)
    tissue = torch.rand((4, 7, 8, 9), generator=generator)
    tissue[1, :3] = 0  # no white matter here
    thin = ageing.thinned(tissue, 0.9)
    assert float(thin[0].sum() / tissue[0].sum()) == pytest.approx(0.9, abs=0.002)
    assert thin.sum(0) == pytest.approx(tissue.sum(0), abs=1e-5)
    assert thin[:, :3] == pytest.approx(tissue[:, :3], abs=1e-5) and torch.equal(thin[2:], tissue[2:])


@pytest.mark.parametrize(
    ("sign", "place", "elsewhere"),
    [
        ("superior_sulci", lambda x, y, z: (z > 50) & (y > -20), lambda x, y, z: z < 0),
        ("sylvian_fissures", lambda x, y, z: (abs(abs(x) - 46) < 4) & (abs(y) < 8) & (abs(z) < 5), lambda x, y, z: abs(x) < 8),
    ],
)
def test_sulci_widen_where_their_sign_says(sign, place, elsewhere):
    points_mm = voxel_centres_mm((40, 56, 40), 4)
    logit = 1.5 * torch.randn(points_mm.shape[1:], generator=torch.Generator().manual_seed(2)) - 2
    wide = torch.sigmoid(ageing.widened(logit, torch.ones_like(logit), points_mm, dataclasses.replace(SIGNS, **{sign: 1.2})))
    plain = torch.sigmoid(logit)
    here = place(*points_mm)
    assert float(wide[here].sum() / plain[here].sum()) == pytest.approx(1.2, abs=0.04)
    assert (wide / plain)[elsewhere(*points_mm)] == pytest.approx(1, abs=0.01)


def test_hypointensities_have_their_volume_and_lie_in_white_matter_beside_the_ventricles_and_in_its_depth():
    points_mm = voxel_centres_mm((80, 112, 80), SPACING_MM)
    wall_mm = (points_mm - torch.tensor([0.0, -18, 20])[:, None, None, None]).norm(dim=0) - 25
    white = ((wall_mm > 0) & (wall_mm < 35)).float()
    generator = torch.Generator().manual_seed(4)
    dark = ageing.hypointensities(white, wall_mm, points_mm, SPACING_MM, SIGNS, generator) * white
    assert soft_ml(dark) == pytest.approx(4.0, rel=0.25)  # caps of 3 mL and spots of 1 mL
    assert 2 < soft_ml(dark * (wall_mm < ageing.DEEP_MM)) < 4.5 and 0.5 < soft_ml(dark * (wall_mm > ageing.DEEP_MM)) < 2
    assert not dark[points_mm[2] < 0].any()


def test_age_does_not_move_the_requested_volumes(monkeypatch):
    (_, young), (_, old) = pair_of_heads(monkeypatch)
    assert (young != old).any()
    for labels in (young, old):
        volumes = measure_ml(labels, 4)
        assert volumes["ventricles_ml"] == pytest.approx(40, abs=0.1)
        assert volumes["brain_ml"] / volumes["icv_ml"] == pytest.approx(0.76, abs=0.003)


def test_an_old_head_looks_older_than_a_young_one_of_the_same_volumes(monkeypatch):
    """A radiologist would see less contrast, a thinner cortex, wider horns and darker white matter at the ventricles."""
    seen = []
    for image, labels in pair_of_heads(monkeypatch):
        cortex, white = image[np.isin(labels, (2, 3))].mean(), np.median(image[np.isin(labels, (4, 5))])
        points_mm = voxel_centres_mm(labels.shape, 4).numpy()
        horns = np.isin(labels, (6, 7)) & (points_mm[2] < -6)
        dark = (labels > 3) & (labels < 6) & (image < 0.75 * white) & (points_mm[2] > 0)
        seen.append([(white - cortex) / white, np.isin(labels, (2, 3)).sum(), horns.sum(), dark.sum()])
    young, old = np.array(seen)
    assert old[0] < 0.95 * young[0] and old[1] < 0.93 * young[1]
    assert old[2] > 1.8 * young[2] and old[3] > young[3] + 40


@pytest.mark.parametrize(("protocol", "alike"), [("one", True), ("many", False)])
def test_scans_of_one_protocol_share_contrast_noise_and_coil(protocol, alike):
    signal, brain = torch.full((20, 28, 24), 0.6), torch.ones((20, 28, 24), dtype=torch.bool)
    scans = torch.stack([acquire(signal, brain, 8, torch.Generator().manual_seed(k), protocol) for k in range(8)]).flatten(1)
    biases = torch.nn.functional.avg_pool3d(scans.unflatten(1, (20, 28, 24)), 4).flatten(1)
    shared = torch.corrcoef(biases)[~torch.eye(8, dtype=torch.bool)].mean()
    assert (shared > 0.7) == alike
    labels = torch.full((20, 28, 24), 2, dtype=torch.int16)  # white matter
    labels[:10] = 3  # cortex
    painted = [labelled_subject.paint(labels, torch.Generator().manual_seed(k), protocol) for k in range(8)]
    assert (np.std([float(image[:10].mean() / image[10:].mean()) for image in painted]) < 0.03) == alike
