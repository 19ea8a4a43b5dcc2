"""Register scans (by intensities) and label maps (by deep grey structures) rigidly to MNI space."""
