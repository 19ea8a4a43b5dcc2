"""Give the tools the schema of covariates of brain_ldm_bundle, by `from ldm.data.covariates import CovariateSchema`."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "brain_ldm_bundle" / "scripts")]
