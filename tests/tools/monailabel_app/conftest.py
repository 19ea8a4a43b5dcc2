"""One server for each app serves all tests of this folder."""

from functools import partial

import pytest
from label_server import serving, start, write_app, write_studies


@pytest.fixture(scope="session", params=["sample_app", "own_app"])
def client(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    own = request.param == "own_app"
    app, studies = write_app(folder / "app", own), write_studies(folder / "studies")
    with serving(partial(start, app, studies), folder / "log") as client:
        client.own, client.bundles, client.studies = own, app / "model", studies
        client.first_info = client.info()  # before a request changes the datastore
        yield client
