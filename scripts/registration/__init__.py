"""Rigid registration to MNI space: of scans by intensities, of label maps by deep grey structures."""
