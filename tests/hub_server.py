"""A hub on this computer: as much of the protocol of Hugging Face as publishing and downloading a bundle needs.

A repository has one branch. Each commit keeps all its files, so that a tag shows the files of its commit. Large files come by
Git LFS. What is not described here is answered with status 404, and noted in `unknown`.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(self, revision: str) -> str | None:
        return {"main": self.head, **self.tags, **{sha: sha for sha in self.commits}}.get(revision)


class Hub(http.server.ThreadingHTTPServer):
    """Serve repositories; `repos` holds what was uploaded."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        length = self.headers.get("Content-Length")
        self.body = self.rfile.read(int(length)) if length else self.chunks()
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and not path.startswith("/blob/"):
            return self.say({"error": "Invalid credentials"}, 401)
        for pattern, answer in ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {path}"):
                repo = self.server.repos.get(found.groupdict().get("repo", ""))
                if repo is None and "repo" in found.groupdict():
                    return self.say({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return answer(self, repo, **{name: text for name, text in found.groupdict().items() if name != "repo"})
        self.server.unknown.append(f"{self.command} {path}")
        self.say({"error": "unknown to this hub"}, 404)

    def chunks(self) -> bytes:
        """Read a body that is sent in pieces, of a length that is not known before."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def say(self, content: object, status: int = 200, headers: dict | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def create(self, _) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or asked.get("private", False)
        known = name in self.server.repos
        self.server.repos.setdefault(name, Repo(private))
        self.say({"url": f"{self.server.url}/{name}", "name": name, "id": name}, 409 if known else 200)

    def info(self, repo: Repo, revision: str = "main") -> None:
        if (sha := repo.commit(revision)) is None:
            return self.say({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = [{"rfilename": name} for name in repo.commits[sha]]
        self.say({"id": "a/b", "sha": sha, "private": repo.private, "tags": [], "siblings": files})

    def tree(self, repo: Repo, revision: str) -> None:
        files = repo.commits[repo.commit(revision)]
        listed = ({"type": "file", "path": name, "size": len(data), "oid": blob_id(data)} for name, data in files.items())
        self.say(list(listed))

    def refs(self, repo: Repo) -> None:
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in repo.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head}
        self.say({"branches": [main], "tags": tags, "converts": []})

    def tag(self, repo: Repo) -> None:
        repo.tags[json.loads(self.body)["tag"]] = repo.head
        self.say({})

    def preupload(self, repo: Repo) -> None:
        large = (".pt", ".safetensors", ".png")
        files = json.loads(self.body)["files"]
        modes = ((file["path"], "lfs" if file["path"].endswith(large) else "regular") for file in files)
        self.say({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def lfs(self, repo: Repo) -> None:
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.server.url}/blob/{entry['oid']}"}}
        self.say({"transfer": "basic", "objects": objects})

    def blob(self, _, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.say({"error": "another sha256"}, 400)
        self.server.blobs[oid] = self.body
        self.say({})

    def make_commit(self, repo: Repo) -> None:
        files = dict(repo.commits[repo.head])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        sha = hashlib.sha1(self.body + repo.head.encode()).hexdigest()
        repo.commits[sha] = files
        self.say({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/a/b/commit/{sha}", "hookOutput": ""})

    def resolve(self, repo: Repo, revision: str, name: str) -> None:
        sha = repo.commit(revision)
        if sha is None or name not in repo.commits[sha]:
            return self.say({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        data = repo.commits[sha][name]
        self.say(data, headers={"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": sha, "Content-Type": "application/octet-stream"})

    def yaml(self, _) -> None:
        self.say({"errors": [], "warnings": []})


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = {
    r"POST /api/repos/create": Answer.create,
    r"POST /api/validate-yaml": Answer.yaml,
    rf"GET /api/models/{REPO}": Answer.info,
    rf"GET /api/models/{REPO}/revision/(?P<revision>[^/]+)": Answer.info,
    rf"GET /api/models/{REPO}/tree/(?P<revision>[^/]+)": Answer.tree,
    rf"GET /api/models/{REPO}/refs": Answer.refs,
    rf"POST /api/models/{REPO}/tag/main": Answer.tag,
    rf"POST /api/models/{REPO}/preupload/main": Answer.preupload,
    rf"POST /api/models/{REPO}/commit/main": Answer.make_commit,
    rf"POST /{REPO}\.git/info/lfs/objects/batch": Answer.lfs,
    r"PUT /blob/(?P<oid>\w+)": Answer.blob,
    rf"GET /{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)": Answer.resolve,
}


@contextlib.contextmanager
def serve():
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
