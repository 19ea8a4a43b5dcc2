"""Define the two functions. MONAI Label calls them only when it trains DeepEdit, which does not happen here."""


def make_grid(*args, **kwargs):
    raise NotImplementedError("this is not torchvision, see scripts/monailabel_app/README.md")


save_image = make_grid
