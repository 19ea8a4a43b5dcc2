"""The network that measures volumes, and tables of volumes."""

from pathlib import Path

WEIGHTS = Path(__file__).with_name("volume_net.pt")
