"""The two functions. They draw pictures while DeepEdit trains, which does not happen here."""


def make_grid(*args, **kwargs):
    raise NotImplementedError("this is not torchvision, see scripts/monailabel_app/README.md")


save_image = make_grid
