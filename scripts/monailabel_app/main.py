"""Serve this project's bundles in MONAI Label. The app explains errors in weights at its start, and errors in requests."""

import atexit
import difflib
import json
import logging
import os
import re
import shutil
import sys
from typing import Annotated

import nibabel as nib
from fastapi import BackgroundTasks, Depends, File, Form, HTTPException, Request, UploadFile
from monailabel.config import settings
from monailabel.endpoints import batch_infer, infer, train
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.app import MONAILabelApp, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask

logger = logging.getLogger(__name__)

# What MONAI Label and its clients may add to a request. An inference ignores all but the model, the image and where it runs.
OF_CLIENTS = (
    *("model", "image", "label", "images", "device", "model_filename", "save_label", "label_tag", "label_info", "labels"),
    *("description", "foreground", "background", "session", "client_id", "logging", "timeout", "skip_writer", "largest_cc"),
    *("result_extension", "result_dtype", "result_compress", "result_write_to_file", "restore_label_idx", "dataset"),
    *("cache_transforms", "cache_transforms_in_memory", "cache_transforms_ttl", "max_workers", "max_batch_size"),
    *("max_epochs", "val_split", "pretrained", "multi_gpu", "force_multi_gpu", "gpus", "run_id", "early_stop_patience"),
    *("tracking", "tracking_uri", "tracking_experiment_name", "tracking_run_name", "name"),
)
# What a request can cause; everything else is a fault of the server.
FAULTS = (ValueError, OverflowError, OSError, RuntimeError, EOFError, nib.filebasedimages.ImageFileError, MONAILabelException)
KEPT = ("model", "image", "device", "model_filename", "save_label")
LABEL_MAP = re.compile(r"_dseg(\.|$)")  # names of BIDS


def refuse_expressions(values):
    """Refuse values that MONAI would evaluate: text that begins with "$", "@" or "%", and dicts that name a class."""
    for name, value in values.items():
        if not isinstance(value, (int, float, str, type(None))) or str(value).startswith(("$", "@", "%")):
            raise ValueError(f"{name} must be a number or a plain word, got {value!r}")


def refuse_unknown(given, known, model):
    """Refuse names that neither the model nor MONAI Label knows; they would be ignored."""
    for name in given:
        if name not in known and name not in OF_CLIENTS:
            near = difflib.get_close_matches(str(name).lower(), [*known, *OF_CLIENTS], 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Its settings are: {', '.join(known) or 'none'}"
            raise ValueError(f"{model} has no setting {name!r}. {hint}")


def refuse_wrong(given, task):
    """Refuse values that the settings of training in the task's bundle do not allow."""
    rule_of = task.bundle_config.globals["scripts"].shared.settings  # the bundle's code, which MONAI has imported for the task
    with open(os.path.join(task.bundle_path, "configs", "settings.json"), encoding="utf-8") as file:
        rules = json.load(file)
    rules |= rules["train"]
    for name, value in given.items():
        if isinstance(rules.get(name), str) and rule_of.fault(rule_of.RELATION.fullmatch(rules[name])[1], value) is not None:
            raise ValueError(f"{name} is {value!r}. Allowed: {rules[name]}")


def read_params(text):
    """Read the part `params` of a request: one JSON object, in which each name stands once."""

    def once(pairs):
        if twice := [name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1]:
            raise ValueError(f"it has {twice[0]!r} twice")
        return dict(pairs)

    try:
        params = json.loads(text or "{}", object_pairs_hook=once)
        if not isinstance(params, dict):
            raise ValueError("it is no object in braces")
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f'params must be JSON such as {{"age": 70}}, got {text[:200]!r} ({error})') from None
    return params


async def checked_infer(
    request: Request,
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
    user: Annotated[object, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))] = None,
):
    """Run an inference as MONAI Label's own endpoint does, after checks of what would end in status 500 or be ignored."""
    known = {"image", "session_id", "output"}, {"params", "file", "label"}
    kind = request.headers.get("content-type", "multipart/form-data")
    try:
        if not kind.startswith(("multipart/form-data", "application/x-www-form-urlencoded")):
            raise HTTPException(400, f"a request is a form, got {kind!r}. Send settings as its field params={{...}}")
        read_params(params)
        for names, allowed in zip((request.query_params, await request.form()), known):
            if astray := sorted(set(names) - allowed):
                raise HTTPException(400, f'{astray[0]!r} is in the wrong place. Send it as params={{"{astray[0]}": ...}}')
        if not (image or file or session_id):
            raise HTTPException(400, "the request has no image. Add ?image=NAME of the datastore, or send a file")
        return infer.run_inference(background_tasks, model, image, session_id, params, file, label, output)
    except HTTPException as error:
        logger.error(error.detail)
        raise


async def checked_train(
    model: str,
    params: dict | None = None,
    run_sync: bool | None = False,
    enqueue: bool | None = False,
    user: Annotated[object, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))] = None,
):
    """Start a training as MONAI Label's own endpoint does, after a check of the names of the settings."""
    app_instance().check_training(model, params or {})
    return train.run_model(model, params, run_sync, enqueue)


async def checked_batch(
    model: str,
    images: batch_infer.BatchInferImageType = batch_infer.BatchInferImageType.IMAGES_ALL,
    params: dict | None = None,
    run_sync: bool | None = False,
    user: Annotated[object, Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))] = None,
):
    """Start inferences of several images as MONAI Label's own endpoint does, after a check of the settings."""
    app_instance().check_inference({"model": model, **(params or {})})
    defaults = {"save_label": True, "multi_gpu": False}  # with several GPUs, MONAI Label 0.8.5 divides by zero on a CPU
    return batch_infer.run(model, images, defaults | (params or {}), run_sync)


class Infer(BundleInferTask):
    def __init__(self, path, conf):
        if not os.path.isfile(weights := os.path.join(path, "models", "model.pt")):  # else MONAI Label only skips the bundle
            command = "python -m monai.bundle run training --config_file configs/train.json --dataset_dir DIR"
            raise FileNotFoundError(f"{weights}: no such weights file. Make it with: {command}")
        super().__init__(path, conf, type="others", load_strict=True)
        self._update_device({"device": "cpu"})
        self.labels, self.network = {"synthetic t1w": 0}, self.bundle_config.get_parsed_content("network")  # loads strictly
        self.inferer({"device": "cpu"})  # loads the other weights now, so that errors appear at the start
        self.settings = dict(getattr(self, "displayable_configs", {}))  # with defaults

    def checked(self, request):
        """Return the part of a client's request that counts, and refuse unknown names and wrong values."""
        refuse_unknown(request, self.settings, os.path.basename(self.bundle_path))
        kept = {name: value for name, value in request.items() if name in KEPT or name in self.settings}
        refuse_expressions(kept)
        choices = {"device": ["cuda", *self._config["device"]], "model_filename": self._config["model_filename"]}
        for name, allowed in (choices | {"save_label": [True, False]}).items():
            if name in kept and kept[name] not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(str, allowed))}, got {kept[name]!r}")
        return kept

    def writer(self, data, extension=None, dtype=None):  # always NIfTI, because its header holds the mark
        path, result = super().writer({**data, "result_write_to_file": True}, ".nii.gz", "float32")
        used = {name: data[name] for name in self.settings}
        image = nib.load(path)
        image.header["descrip"] = "Synthetic, not for clinical use"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(used).encode()))
        nib.save(nib.Nifti1Image(image.dataobj[...], image.affine, image.header), path)
        return path, {**result, "used": used, "notice": "Synthetic image. For research, not for clinical use."}


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


class ScansOnly:
    """A datastore whose label maps are not among the images that wait for an annotation. Everything else is the datastore's."""

    def __init__(self, datastore):
        self.datastore = datastore

    def __getattr__(self, name):
        return getattr(self.datastore, name)

    def get_unlabeled_images(self, *request):
        return [name for name in self.datastore.get_unlabeled_images(*request) if not LABEL_MAP.search(name)]


class RandomScan(Random):
    def __call__(self, request, datastore):
        return super().__call__(request, ScansOnly(datastore))


class App(MONAILabelApp):
    def init_strategies(self):  # what "Next Sample" of a client asks for
        return {"random": RandomScan()}

    def init_infers(self):
        self.name, self.description = "Synthetic T1w", "Synthetic images. For research, not for clinical use"
        try:
            return {name: Infer(f"{self.app_dir}/model/{name}", self.conf) for name in self.conf["models"].split(",")}
        except Exception as error:
            sentence = f"{self.conf['models']} cannot be served: {error.__cause__ or error}"
            atexit.register(print, f"error: {sentence}", file=sys.stderr)  # below what the server prints when it gives up
            raise RuntimeError(sentence) from None

    def server_mode(self, mode):  # called at the start of a server, before the first request
        super().server_mode(mode)
        import monailabel.app

        own = {"/infer/{model}": checked_infer, "/train/{model}": checked_train, "/batch/infer/{model}": checked_batch}
        for path, endpoint in own.items():
            monailabel.app.app.add_api_route(settings.MONAI_LABEL_API_STR + path, endpoint, methods=["POST"])
            routes = monailabel.app.app.router.routes
            routes.insert(0, routes.pop())  # the first route that fits is taken

    def init_trainers(self):  # only for the bundle that learns from images and label maps without covariates
        tasks = {name: Train(task.bundle_path, self.conf) for name, task in self._infers.items()}
        return {name: task for name, task in tasks.items() if "covariates_file" not in task.bundle_config.config}

    def check_training(self, model, params):
        if model not in self._trainers:
            raise HTTPException(404, f"no model {model!r} can be trained here, only {', '.join(self._trainers)}")
        try:
            refuse_unknown(params, self._trainers[model].bundle_config.config, model)
            refuse_expressions(params)
            refuse_wrong(params, self._infers[model])
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    def check_inference(self, request):
        """Return the part of a client's request that counts, and refuse a wrong one."""
        if (model := request.get("model")) not in self._infers:
            raise HTTPException(404, f"there is no model {model!r}, only {', '.join(self._infers)}")
        try:
            return self._infers[model].checked(request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    def infer(self, request, datastore=None):
        request = self.check_inference(request)
        if not (os.path.exists(image := str(request.get("image"))) or self.datastore().get_image_uri(image)):
            raise HTTPException(404, f"the datastore has no image {image!r}")
        try:
            return super().infer(request | {"label_tag": "original"}, datastore)
        except FAULTS as error:
            reason = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # MONAI wraps our errors
            raise HTTPException(400, getattr(reason, "msg", None) or str(reason)[:500]) from error
