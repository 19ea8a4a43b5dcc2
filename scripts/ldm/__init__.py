"""Give the tools modules of brain_ldm_bundle: `from ldm.data.covariates import CovariateSchema`."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "brain_ldm_bundle" / "scripts")]
