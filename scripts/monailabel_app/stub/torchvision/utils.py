"""The two functions. They draw pictures while DeepEdit trains, which nothing here does."""


def make_grid(*args, **kwargs):
    raise NotImplementedError("this is no torchvision, see scripts/monailabel_app/README.md")


save_image = make_grid
