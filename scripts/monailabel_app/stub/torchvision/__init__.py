"""In place of torchvision, of which MONAI Label 0.8.5 imports two functions: its wheels do not fit every build of PyTorch."""
