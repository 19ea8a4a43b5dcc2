"""Give the tools the package `shared` of brain_ldm_bundle, for example by `from shared.files import atomic`."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "brain_ldm_bundle" / "scripts" / "shared")]
