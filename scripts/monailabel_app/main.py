"""Serve this project's bundles in MONAI Label. The app explains errors in weights at its start, and errors in requests."""

import os
import shutil

import nibabel as nib
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp, MONAILabelException
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask


def refuse_expressions(settings):
    """Refuse values that MONAI would evaluate: text that begins with "$", "@" or "%", and dicts that name a class."""
    for name, value in settings.items():
        if not isinstance(value, (int, float, str, type(None))) or str(value).startswith(("$", "@", "%")):
            raise ValueError(f"{name} must be a number or a plain word, got {value!r}")


class Infer(BundleInferTask):
    def __init__(self, path, conf):
        if not os.path.isfile(weights := os.path.join(path, "models", "model.pt")):  # else MONAI Label only skips the bundle
            command = "python -m monai.bundle run training --config_file configs/train.json --dataset_dir DIR"
            raise FileNotFoundError(f"{weights}: no such weights file. Make it with: {command}")
        super().__init__(path, conf, type="others", load_strict=True)
        self._update_device({"device": "cpu"})
        self.labels, self.network = {"synthetic t1w": 0}, self.bundle_config.get_parsed_content("network")  # loads strictly
        self.inferer({"device": "cpu"})  # loads the other weights now, so that errors appear at the start

    def pre_transforms(self, data=None):
        refuse_expressions({name: data[name] for name in ("device", *getattr(self, "displayable_configs", ()))})
        return super().pre_transforms(data)

    def writer(self, data, extension=None, dtype=None):  # always NIfTI, because its header holds the mark
        path, result = super().writer({**data, "result_write_to_file": True}, ".nii.gz", "float32")
        image = nib.load(path)
        image.header["descrip"] = "Synthetic, not for clinical use"
        nib.save(nib.Nifti1Image(image.dataobj[...], image.affine, image.header), path)
        return path, {**result, "notice": "Synthetic image. For research, not for clinical use."}


class Train(BundleTrainTask):
    def _load_checkpoint(self, *served):
        """Load nothing: the GANs start from scratch, and a fusion CNN fits only its own GANs."""

    def __call__(self, request, datastore):
        refuse_expressions(request)
        fixed = {"multi_gpu": False, "force_multi_gpu": False, "tracking": "none"}  # MONAI's tracking could read any file
        super().__call__({**request, **fixed, "run_id": request.get("run_id") or "run"}, datastore)

    def run_single_gpu(self, request, overrides):  # a client may set numbers only, no paths
        given = {name: value for name, value in request.items() if isinstance(value, (int, float)) or name == "label_table"}
        overrides["models_dir"] = new = os.path.join(self.bundle_path, "models", "label")  # keeps runs that a user can resume
        shutil.rmtree(new, ignore_errors=True)
        super().run_single_gpu(request, {name: given[name] for name in given if name in self.bundle_config.config} | overrides)
        shutil.copytree(new, f"{new}/..", ignore=shutil.ignore_patterns("resume"), copy_function=os.replace, dirs_exist_ok=True)


class App(MONAILabelApp):
    def init_infers(self):
        self.name, self.description = "Synthetic T1w", "Synthetic images. For research, not for clinical use"
        try:
            return {name: Infer(f"{self.app_dir}/model/{name}", self.conf) for name in self.conf["models"].split(",")}
        except Exception as error:
            raise RuntimeError(f"{self.conf['models']} cannot be served: {error.__cause__ or error}") from error

    def init_trainers(self):  # only for the bundle that learns from images and label maps without covariates
        tasks = {name: Train(task.bundle_path, self.conf) for name, task in self._infers.items()}
        return {name: task for name, task in tasks.items() if "label_table" in task.bundle_config.config}

    def bundle_path(self, model):  # MONAI Label calls this before it starts a training
        if model not in self._trainers:
            raise HTTPException(404, f"no model {model!r} can be trained here, only {', '.join(self._trainers)}")
        return super().bundle_path(model)

    def infer(self, request, datastore=None):
        try:
            if not (os.path.exists(image := str(request.get("image"))) or self.datastore().get_image_uri(image)):
                raise ValueError(f"the datastore has no image {image!r}")
            return super().infer({**request, "skip_writer": False, "label_tag": "original"}, datastore)
        except (ValueError, OSError, RuntimeError, EOFError, nib.filebasedimages.ImageFileError, MONAILabelException) as error:
            reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # MONAI wraps our errors
            raise HTTPException(400, getattr(reason, "msg", None) or str(reason)[:500]) from error
