"""Replace torchvision, whose wheels do not fit every build of PyTorch. MONAI Label 0.8.5 imports two of its functions."""
