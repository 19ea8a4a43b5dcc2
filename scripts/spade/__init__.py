"""Give the tools the code of spade_fusion_bundle, by `from spade.model.networks import SpadeFusion`."""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "spade_fusion_bundle" / "scripts")]
