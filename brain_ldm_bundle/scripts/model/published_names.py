"""Load the published UK Biobank weights, which have the names of monai-generative 0.2 and neither scale factor nor recipe."""

from __future__ import annotations

from collections.abc import Mapping

import torch

# What the published weights were trained on, in the order of their inputs: as configs/covariates.json, which users may edit.
PUBLISHED_COVARIATES = {
    "covariates": [
        {"name": "sex", "levels": {"F": 0, "M": 1}},
        {"name": "age", "range": [44, 82]},
        {"name": "ventricles_ml", "range": [6.99568, 171.375]},
        {"name": "brain_normalised_ml", "range": [1144.24, 1793.91]},
    ]
}

BEYOND_PUBLISHED = {"scale_factor", "_extra_state"}  # a file may lack both, but not only one


class PublishedNames:
    """A network that can load the published weights as well as its own."""

    def current_names(self, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rename the tensors of a state dict as in MONAI 1.6, for `load_weights`."""
        own = self.state_dict()
        published = {key.replace(".postconv.", ".conv.").replace(".out_proj.", ".to_out.0."): key for key in own}
        beyond = {key: own[key].clone() for key in BEYOND_PUBLISHED & own.keys()} if BEYOND_PUBLISHED.isdisjoint(found) else {}
        return beyond | {key if key in own else published.get(key, key): value for key, value in found.items()}
