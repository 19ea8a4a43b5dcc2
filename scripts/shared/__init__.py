"""The bundles' room `shared`, for the tools: `from shared.files import atomic` reads that of brain_ldm_bundle."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "brain_ldm_bundle" / "scripts" / "shared")]
