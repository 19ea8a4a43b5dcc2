"""What MONAI lacks for this bundle. Imports run downwards: evaluation, generation, training, model, data, shared."""

import importlib
import pkgutil

# Configs write `scripts.data.scans_and_maps.read_dataset`, which needs every module to be imported.
for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

shared.refusals.install()  # noqa: F821 - imported by the loop
