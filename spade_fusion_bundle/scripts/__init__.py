from . import device, files, handlers, overrides, panels
